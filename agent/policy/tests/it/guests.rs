//! Small guests, written by hand in the text format of core modules and wrapped by wit-component.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The contract as it is shipped.
pub(crate) const WIT: &str = include_str!("../../../../plugins/wit/policy.wit");

/// Wraps a core module into a component of a world of a WIT.
pub(crate) fn component(wit: &str, world: &str, module: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let package = resolve.push_source("policy.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let mut module = wat::parse_str(module).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .and_then(|mut encoder| encoder.encode())
        .unwrap()
}

/// How a [`Guest`] imports its voice.
pub(crate) const LOG_IMPORT: &str = r#"(import "offramp:policy/host@1.1.0" "log" (func $log (param i32 i32 i32)))"#;

/// A guest of the contract: what it adds to a policy that always goes on.
#[derive(Clone, Copy)]
pub(crate) struct Guest<'a> {
    pub(crate) wit: &'a str,
    pub(crate) world: &'a str,
    /// The version in the names of its imports and exports.
    pub(crate) version: &'a str,
    /// Pages of its memory.
    pub(crate) pages: u32,
    /// Body of `configure`; leaves the address of its result. Address 0 holds `ok`.
    pub(crate) configure: &'a str,
    /// Body of `decide`; leaves the verdict.
    pub(crate) decide: &'a str,
    /// Body of `observe`, in the world `stateful-policy` only.
    pub(crate) observe: &'a str,
    /// Body of `save`, there only; leaves the address of a list. Address 0 holds an empty one.
    pub(crate) save: &'a str,
    /// Body of `restore`, there only; leaves the address of its result. Address 0 holds `ok`.
    pub(crate) restore: &'a str,
    /// Further fields of the module.
    pub(crate) fields: &'a str,
}

impl Default for Guest<'_> {
    fn default() -> Self {
        Guest {
            wit: WIT,
            world: "exit-policy",
            version: "1.1.0",
            pages: 1,
            configure: "i32.const 0",
            decide: "i32.const 0",
            observe: "",
            save: "i32.const 0",
            restore: "i32.const 0",
            fields: "",
        }
    }
}

impl Guest<'_> {
    pub(crate) fn module(&self) -> String {
        let Guest {
            version,
            pages,
            configure,
            decide,
            observe,
            save,
            restore,
            fields,
            ..
        } = self;
        let optional = format!(
            r#"(func (export "offramp:policy/observer@{version}#observe")
                    (param $exit i32) (param $class i32) (param f32 f32 f32 f32 f32 f32)
                    (param $hurried i32) (param $fault i32) (param $audit i32)
                    {observe})
                (func (export "offramp:policy/state@{version}#save") (result i32) {save})
                (func (export "offramp:policy/state@{version}#restore")
                    (param $saved i32) (param $length i32) (result i32)
                    {restore})"#
        );
        let optional = if self.world == "stateful-policy" { &optional } else { "" };
        format!(
            r#"(module
                (import "offramp:policy/host@{version}" "log" (func $log (param i32 i32 i32)))
                (memory (export "memory") {pages})
                (table $table 1 funcref)
                (global $heap (mut i32) (i32.const 1024))
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                    (local $at i32)
                    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
                    (global.set $heap (i32.add (local.get $at) (local.get 3)))
                    (local.get $at))
                (func (export "offramp:policy/guest@{version}#configure") (param i32 i32 i32 i32 i32) (result i32)
                    {configure})
                (func (export "offramp:policy/guest@{version}#decide")
                    (param $exit i32) (param $exits i32) (param $class i32) (param $confidence f32)
                    (param f32 f32 i32 f32 f32 f32 f32 i32 f32 f32 f32 f32) (result i32)
                    {decide})
                {optional}
                {fields})"#
        )
    }

    pub(crate) fn component(&self) -> Vec<u8> {
        component(self.wit, self.world, &self.module())
    }
}

/// Classes that make the [`puppet`] misbehave.
pub(crate) mod class {
    pub(crate) const TRAP: u32 = 100;
    pub(crate) const LOOP: u32 = 101;
    pub(crate) const RECURSE: u32 = 102;
    pub(crate) const GROW_TO_4_GIB: u32 = 103;
    pub(crate) const GROW_TABLE: u32 = 104;
    pub(crate) const NO_VERDICT: u32 = 105;
    pub(crate) const OUT_OF_BOUNDS: u32 = 106;
    pub(crate) const DIVIDE_BY_ZERO: u32 = 107;
    pub(crate) const FILL_FOREVER: u32 = 108;
    pub(crate) const LOG: u32 = 109;
    pub(crate) const LOG_5000_BYTES: u32 = 110;
    pub(crate) const LOG_NO_UTF8: u32 = 111;
    pub(crate) const LOG_FOREVER: u32 = 112;
    pub(crate) const CALL_NULL: u32 = 113;
}

/// A guest that does what the class says: 0 to 3 is the verdict, others are in [`class`]. Puppets of
/// different `name`s have different digests.
pub(crate) fn puppet(name: &str) -> Vec<u8> {
    let on = |class: u32, body: &str| format!("(if (i32.eq (local.get $class) (i32.const {class})) (then {body}))");
    let decide = [
        on(class::TRAP, "unreachable"),
        on(class::LOOP, "(loop $l (br $l))"),
        on(class::RECURSE, "(call $recurse)"),
        on(class::GROW_TO_4_GIB, "(drop (memory.grow (i32.const 65535)))"),
        on(
            class::GROW_TABLE,
            "(drop (table.grow $table (ref.null func) (i32.const 5000)))",
        ),
        on(class::NO_VERDICT, "(return (i32.const 7))"),
        on(class::OUT_OF_BOUNDS, "(drop (i32.load (i32.const 65536)))"),
        on(class::DIVIDE_BY_ZERO, "(drop (i32.div_s (i32.const 1) (i32.const 0)))"),
        on(
            class::FILL_FOREVER,
            "(loop $l (memory.fill (i32.const 0) (i32.const 0) (i32.const 65536)) (br $l))",
        ),
        on(
            class::LOG,
            "(call $log (i32.const 0) (i32.const 16) (i32.const 5)) (return (i32.const 1))",
        ),
        on(
            class::LOG_5000_BYTES,
            "(call $log (i32.const 0) (i32.const 1024) (i32.const 5000))",
        ),
        on(
            class::LOG_NO_UTF8,
            "(call $log (i32.const 0) (i32.const 32) (i32.const 1))",
        ),
        on(
            class::LOG_FOREVER,
            "(loop $l (call $log (i32.const 3) (i32.const 16) (i32.const 5)) (br $l))",
        ),
        on(class::CALL_NULL, "(call_indirect $table (i32.const 0))"),
        "local.get $class".to_owned(),
    ];
    let fields = format!(
        r#"(func $recurse (call $recurse) (call $recurse))
           (data (i32.const 16) "hello")
           (data (i32.const 32) "\ff")
           (data (i32.const 64) "{name}")"#
    );
    let guest = Guest {
        decide: &decide.join("\n"),
        fields: &fields,
        ..Guest::default()
    };
    guest.component()
}

/// A guest that counts the frames it is told of, and decides by their number modulo 4. Its state is that number; it
/// refuses any of another length.
pub(crate) fn counter(name: &str) -> Vec<u8> {
    let fields = format!(
        r#"(global $seen (mut i32) (i32.const 0))
           (data (i32.const 16) "\00\02\00\00\04\00\00\00")
           (data (i32.const 32) "\01\00\00\00\40\00\00\00\03\00\00\00")
           (data (i32.const 64) "odd")
           (data (i32.const 96) "{name}")"#
    );
    let guest = Guest {
        world: "stateful-policy",
        decide: "(i32.rem_u (global.get $seen) (i32.const 4))",
        observe: "(global.set $seen (i32.add (global.get $seen) (i32.const 1)))",
        save: "(i32.store (i32.const 512) (global.get $seen)) i32.const 16",
        restore: "(if (i32.ne (local.get $length) (i32.const 4)) (then (return (i32.const 32))))
            (global.set $seen (i32.load (local.get $saved)))
            i32.const 0",
        fields: &fields,
        ..Guest::default()
    };
    guest.component()
}
