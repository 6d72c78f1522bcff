//! The wire contract between agents and the controller.
