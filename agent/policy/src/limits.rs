use std::time::Duration;

/// What a policy may use. The [crate's documentation](crate) says what each limit covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of a component file in bytes.
    pub component_bytes: usize,
    /// Fuel of one `decide`, about the number of WebAssembly instructions. The shipped policies use
    /// below 200; 100,000 take some 0.1 ms on a desktop and below 1 ms on a small board.
    pub decide_fuel: u64,
    /// Fuel of making an instance and its `configure`, and of a `save` and a `restore`.
    pub configure_fuel: u64,
    /// Wall time of one call. A call is ended between this and half as long again.
    pub deadline: Duration,
    /// Linear memory of an instance in bytes, rounded up to pages of 64 KiB.
    pub memory_bytes: usize,
    /// Table elements of an instance.
    pub table_elements: usize,
    /// Stack of a call in bytes. The threads that call need as much, and room for themselves.
    pub stack_bytes: usize,
    /// What a `save` may give, in bytes.
    pub state_bytes: usize,
    /// Largest body of a function in bytes, and most functions of a component: the time to compile grows with the
    /// first faster than in proportion.
    pub function_bytes: usize,
    /// See [`function_bytes`](Self::function_bytes).
    pub functions: u32,
    /// Compiled policies that are kept for the next time they are loaded.
    pub cached_policies: usize,
    /// Bytes of their component files, together.
    pub cached_bytes: usize,
    /// Instances at a time, over all policies of a host. A swap holds up to three for each camera.
    pub instances: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            component_bytes: 1 << 20,
            decide_fuel: 100_000,
            configure_fuel: 1_000_000,
            deadline: Duration::from_millis(50),
            memory_bytes: 2 << 20,
            table_elements: 4096,
            stack_bytes: 128 << 10,
            state_bytes: 64 << 10,
            function_bytes: 64 << 10,
            functions: 4096,
            cached_policies: 8,
            cached_bytes: 4 << 20,
            instances: 64,
        }
    }
}
