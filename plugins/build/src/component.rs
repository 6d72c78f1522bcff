use wit_component::ComponentEncoder;

/// A core module that is no exit policy.
#[derive(Debug, thiserror::Error)]
#[error("the module is no exit policy ({reason}); does the crate call `export_policy!`?")]
pub struct ComponentError {
    reason: String,
}

/// Wraps a core module into a component, by the interface description that its bindings left in it.
///
/// # Errors
///
/// When the module is malformed, carries no interface description or lacks what it promises, or when
/// it imports functions from outside the contract.
pub fn component(module: &[u8]) -> Result<Vec<u8>, ComponentError> {
    ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| ComponentError {
            reason: format!("{error:#}"),
        })
}
