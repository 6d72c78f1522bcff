//! The project's own chores: set-up, dependency rules, policies, bare metal.
