//! Keeps panics of the runtime inside the call that caused them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::Cause;

/// Runs `work` and turns a panic into an error.
///
/// The runtime indexes and unwraps in places that a strange graph can reach. The
/// caller must throw away whatever `work` may have left half changed.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Cause> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Cause::new(format_args!("the runtime panicked: {}", text.unwrap_or("no message")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_tells_its_message() {
        assert_eq!(contain(|| 7).unwrap(), 7);
        let places: Vec<u8> = Vec::new();
        let cause = contain(|| places[places.len()]).unwrap_err().to_string();
        assert!(
            cause.starts_with("the runtime panicked: index out of bounds"),
            "{cause}"
        );
    }
}
