//! Guest side of exit policies.
