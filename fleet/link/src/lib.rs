//! The MQTT v5 session of a device or controller.
