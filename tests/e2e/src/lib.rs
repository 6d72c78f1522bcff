//! End-to-end tests: real broker, controller and agent.
