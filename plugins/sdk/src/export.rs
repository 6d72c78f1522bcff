use core::cell::RefCell;

/// Where the component keeps its configured policy.
#[doc(hidden)]
pub struct Slot<P>(RefCell<Option<P>>);

// SAFETY: the contract says that calls never overlap, and a component has one thread.
#[cfg(target_arch = "wasm32")]
unsafe impl<P> Sync for Slot<P> {}

impl<P> Slot<P> {
    /// Nothing configured yet.
    #[expect(clippy::new_without_default, reason = "only `export_policy!` makes one, in a static")]
    pub const fn new() -> Self {
        Slot(RefCell::new(None))
    }

    /// Keeps the configured policy.
    pub fn put(&self, policy: P) {
        self.0.replace(Some(policy));
    }

    /// Calls with the configured policy.
    ///
    /// # Panics
    ///
    /// Before `configure` succeeded, which the contract excludes.
    pub fn with<R>(&self, call: impl FnOnce(&mut P) -> R) -> R {
        call(self.0.borrow_mut().as_mut().expect("`configure` comes first"))
    }
}

/// Makes a component of a type that implements [`Policy`](crate::Policy). Call it once in the crate.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        const _: () = {
            const fn implements<P: $crate::Policy>() {}
            implements::<$policy>();

            #[cfg(target_arch = "wasm32")]
            mod component {
                use super::*;

                struct Component;

                static POLICY: $crate::Slot<$policy> = $crate::Slot::new();

                impl $crate::bindings::exports::offramp::policy::guest::Guest for Component {
                    fn configure(
                        model: $crate::ModelFacts,
                        parameters: $crate::__Vec<$crate::Parameter>,
                    ) -> ::core::result::Result<(), $crate::__String> {
                        let parameters = $crate::Parameters::from(parameters);
                        POLICY.put(<$policy as $crate::Policy>::configure(&model, parameters)?);
                        ::core::result::Result::Ok(())
                    }

                    fn decide(view: $crate::ExitView) -> $crate::Verdict {
                        POLICY.with(|policy| $crate::Policy::decide(policy, &view))
                    }
                }

                impl $crate::bindings::exports::offramp::policy::observer::Guest for Component {
                    fn observe(outcome: $crate::Outcome) {
                        POLICY.with(|policy| $crate::Policy::observe(policy, &outcome));
                    }
                }

                impl $crate::bindings::exports::offramp::policy::state::Guest for Component {
                    fn save() -> $crate::__Vec<u8> {
                        POLICY.with(|policy| $crate::Policy::save(policy))
                    }

                    fn restore(saved: $crate::__Vec<u8>) -> ::core::result::Result<(), $crate::__String> {
                        POLICY.with(|policy| $crate::Policy::restore(policy, &saved))
                    }
                }

        $crate::bindings::export_component!(Component with_types_in $crate::bindings);
            }
        };
    };
}
