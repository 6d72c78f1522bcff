//! The device's durable state: heads, desired state, outbox.
