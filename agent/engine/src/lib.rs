//! Runs the stages of a model package one by one.
