use crate::bindings::offramp::policy::host;

pub use host::Level;

/// The bytes of a message that the device keeps.
const KEPT: usize = 256;

/// Writes one line to the device's log.
///
/// 256 bytes of the message are kept, and the device drops lines of a policy that writes too many.
/// Outside WebAssembly there is no device, and this does nothing.
pub fn log(level: Level, message: &str) {
    let mut end = message.len().min(KEPT);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    if cfg!(target_arch = "wasm32") {
        host::log(level, &message[..end]);
    }
}
