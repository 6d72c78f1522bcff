//! The fleet controller.
