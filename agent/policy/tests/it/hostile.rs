//! Components that are no policies, and policies that misbehave: each is refused or contained, with a
//! reason that its operator can act on.

use offramp_core::Verdict;
use offramp_policy::{ConfigureError, Fault, LoadError, ModelFacts, Parameters};

use crate::guests::{Guest, LOG_IMPORT, WIT, class, component, puppet};
use crate::{host, model, told, unhurried, view};

fn refusal(component: &[u8]) -> LoadError {
    host().load(component).expect_err("the component must be refused")
}

#[test]
fn an_oversized_file_is_refused_before_anything_of_it_is_read() {
    let file = vec![0xff; unhurried().component_bytes + 1];
    let error = refusal(&file);
    assert!(
        matches!(
            error,
            LoadError::TooLarge {
                bytes: 1_048_577,
                limit: 1_048_576
            }
        ),
        "{error:?}"
    );
    assert_eq!(told(&error), "the policy is 1048577 bytes; at most 1048576 are allowed");
}

#[test]
fn what_is_no_webassembly_is_told_as_damaged() {
    for file in [&b""[..], b"\0asm", b"PK\x03\x04 a zip file", &[0; 1000]] {
        let error = refusal(file);
        assert!(matches!(error, LoadError::Malformed { .. }), "{error:?}");
        assert!(
            told(&error).contains("it is damaged; transfer or build it again"),
            "{}",
            told(&error)
        );
    }
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let host = host();
    let whole = puppet("whole");
    host.load(&whole).unwrap();
    let taken: Vec<_> = (0..whole.len())
        .filter(|length| host.load(&whole[..*length]).is_ok())
        .collect();
    // Behind the last section that means something stand two with names for debuggers (number 0).
    assert!(taken.len() <= 2, "{taken:?} of {} bytes", whole.len());
    assert!(
        taken.iter().all(|length| whole[*length] == 0),
        "{taken:?} of {} bytes",
        whole.len()
    );
}

#[test]
fn a_flipped_bit_is_refused_or_contained() {
    let host = host();
    let whole = puppet("whole");
    let mut loaded = 0;
    for bit in (0..whole.len() * 8).step_by(101) {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(policy) = host.load(&damaged)
            && let Ok(mut instance) = policy.configure(&model(), &Parameters::default())
        {
            loaded += 1;
            for class in [0, 1, class::LOOP, class::RECURSE, class::GROW_TO_4_GIB] {
                // Whatever it answers, it answers.
                let _ = instance.decide(&view(0, class, 0.5));
                if instance.ended().is_some() && instance.restart().is_err() {
                    break;
                }
            }
        }
    }
    // Flips in its data and constants leave it a component: else this tests less than it says.
    assert!(loaded > 0);
}

#[test]
fn a_core_module_is_told_from_a_component() {
    let module = wat::parse_str(Guest::default().module()).unwrap();
    let error = refusal(&module);
    assert!(matches!(error, LoadError::CoreModule), "{error:?}");
    assert!(told(&error).contains("offramp-policy-build"));
}

#[test]
fn wasi_is_named_as_what_a_policy_does_not_get() {
    let file = wat::parse_str(r#"(component (import "wasi:cli/environment@0.2.0" (instance)))"#).unwrap();
    let error = refusal(&file);
    assert!(
        matches!(&error, LoadError::ForeignImport { name } if name == "wasi:cli/environment@0.2.0"),
        "{error:?}"
    );
    assert!(told(&error).contains("build it without WASI"));
}

#[test]
fn a_function_import_is_refused_as_well() {
    let file = wat::parse_str(r#"(component (import "now" (func (result u64))))"#).unwrap();
    assert!(matches!(refusal(&file), LoadError::ForeignImport { name } if name == "now"));
}

#[test]
fn an_interface_of_a_newer_device_is_told_apart_from_a_foreign_one() {
    let file = wat::parse_str(r#"(component (import "offramp:policy/clock@1.2.0" (instance)))"#).unwrap();
    let error = refusal(&file);
    assert!(matches!(&error, LoadError::UnknownImport { name } if name == "offramp:policy/clock@1.2.0"));
    assert!(told(&error).contains("update the device"));
}

#[test]
fn a_function_that_this_device_lacks_is_named() {
    let wit = WIT.replace("log: func", "now: func() -> u64;\n    log: func");
    let guest = Guest {
        wit: &wit,
        fields: r#"(import "offramp:policy/host@1.1.0" "now" (func $now (result i64)))"#,
        ..Guest::default()
    };
    // Imports stand first in a module.
    let import = guest.fields;
    let module = Guest { fields: "", ..guest }
        .module()
        .replacen("(module", &format!("(module {import}"), 1);
    let error = refusal(&component(&wit, "exit-policy", &module));
    assert!(matches!(error, LoadError::Mismatch { .. }), "{error:?}");
    assert!(told(&error).contains("now"), "{}", told(&error));
}

#[test]
fn another_major_version_of_the_contract_is_told_with_ours() {
    let wit = WIT.replace("@1.1.0", "@2.0.0");
    let guest = Guest {
        wit: &wit,
        version: "2.0.0",
        ..Guest::default()
    };
    let error = refusal(&guest.component());
    assert!(
        matches!(&error, LoadError::Abi { found } if found.ends_with("@2.0.0")),
        "{error:?}"
    );
    assert!(
        told(&error).contains("this device runs version 1.x"),
        "{}",
        told(&error)
    );
}

#[test]
fn a_later_minor_version_that_asks_for_nothing_new_runs() {
    let wit = WIT.replace("@1.1.0", "@1.3.0");
    let guest = Guest {
        wit: &wit,
        version: "1.3.0",
        decide: "i32.const 3",
        ..Guest::default()
    };
    let policy = host().load(&guest.component()).unwrap();
    assert_eq!(policy.abi().to_string(), "1.3.0");
    let mut instance = policy.configure(&model(), &Parameters::default()).unwrap();
    assert_eq!(instance.decide(&view(0, 0, 0.5)), Ok(Verdict::Audit));
}

#[test]
fn the_world_of_another_package_is_no_policy() {
    let module = Guest::default()
        .module()
        .replace(LOG_IMPORT, "")
        .replace("offramp:policy", "acme:camera");
    let error = refusal(&component(
        &WIT.replace("offramp:policy", "acme:camera"),
        "exit-policy",
        &module,
    ));
    assert!(
        matches!(&error, LoadError::NoPolicy { exports } if exports == "acme:camera/guest@1.1.0"),
        "{error:?}"
    );
}

#[test]
fn a_component_without_exports_is_no_policy() {
    let error = refusal(&wat::parse_str("(component)").unwrap());
    assert_eq!(
        told(&error),
        "the policy does not export `offramp:policy/guest`; it exports nothing"
    );
}

#[test]
fn a_policy_that_lacks_decide_is_refused_by_name() {
    let start = WIT.find("    /// Decides about one frame").unwrap();
    let end = WIT.find("-> verdict;").unwrap() + "-> verdict;".len();
    let wit = [&WIT[..start], &WIT[end..]].concat();
    let error = refusal(
        &Guest {
            wit: &wit,
            ..Guest::default()
        }
        .component(),
    );
    assert!(matches!(error, LoadError::Mismatch { .. }), "{error:?}");
    assert!(told(&error).contains("decide"), "{}", told(&error));
}

#[test]
fn a_decide_of_other_types_is_refused() {
    let wit = WIT.replace("exits: u32,", "exits: s32,");
    let error = refusal(
        &Guest {
            wit: &wit,
            ..Guest::default()
        }
        .component(),
    );
    assert!(matches!(error, LoadError::Mismatch { .. }), "{error:?}");
    assert!(told(&error).contains("s32"), "{}", told(&error));
}

#[test]
fn four_gib_at_the_start_are_refused_before_compiling() {
    let error = refusal(
        &Guest {
            pages: 65536,
            ..Guest::default()
        }
        .component(),
    );
    assert!(
        matches!(
            error,
            LoadError::Memory {
                bytes: 4_294_967_296,
                limit: 2_097_152
            }
        ),
        "{error:?}"
    );
    assert_eq!(
        told(&error),
        "the policy starts with 4294967296 bytes of memory; at most 2097152 are allowed"
    );
}

#[test]
fn a_start_function_that_loops_is_ended() {
    let fields = "(start $spin) (func $spin (loop $l (br $l)))";
    let error = refusal(
        &Guest {
            fields,
            ..Guest::default()
        }
        .component(),
    );
    assert!(matches!(error, LoadError::Start(Fault::OutOfFuel)), "{error:?}");
}

#[test]
fn each_misbehaviour_of_decide_is_a_fault_of_its_own() {
    let mut instance = host()
        .load(&puppet("p"))
        .unwrap()
        .configure(&model(), &Parameters::default())
        .unwrap();
    for (class, fault) in [
        (class::TRAP, Fault::Trap { reason: "unreachable" }),
        (class::LOOP, Fault::OutOfFuel),
        (class::FILL_FOREVER, Fault::OutOfFuel),
        (class::LOG_FOREVER, Fault::OutOfFuel),
        (class::RECURSE, Fault::Stack),
        (class::GROW_TO_4_GIB, Fault::Memory),
        (class::GROW_TABLE, Fault::Memory),
        (class::NO_VERDICT, Fault::Contract),
        (class::LOG_5000_BYTES, Fault::Contract),
        (class::LOG_NO_UTF8, Fault::Contract),
        (
            class::OUT_OF_BOUNDS,
            Fault::Trap {
                reason: "out of bounds memory access",
            },
        ),
        (
            class::DIVIDE_BY_ZERO,
            Fault::Trap {
                reason: "integer divide by zero",
            },
        ),
        (
            class::CALL_NULL,
            Fault::Trap {
                reason: "indirect call to null",
            },
        ),
    ] {
        assert_eq!(instance.decide(&view(0, class, 0.5)), Err(fault), "class {class}");
        assert_eq!(instance.ended(), Some(fault));
        assert_eq!(
            instance.decide(&view(0, 1, 0.5)),
            Err(fault),
            "a faulted instance must not decide"
        );
        instance.restart().unwrap();
        assert_eq!(
            instance.decide(&view(0, 1, 0.5)),
            Ok(Verdict::Leave),
            "after class {class}"
        );
    }
}

#[test]
fn logging_is_no_fault() {
    let mut instance = host()
        .load(&puppet("p"))
        .unwrap()
        .configure(&model(), &Parameters::default())
        .unwrap();
    for _ in 0..1000 {
        assert_eq!(instance.decide(&view(0, class::LOG, 0.5)), Ok(Verdict::Leave));
    }
}

#[test]
fn a_configure_that_traps_loops_or_refuses_is_told() {
    let configured = |body: &str, fields: &str| {
        let guest = Guest {
            configure: body,
            fields,
            ..Guest::default()
        };
        host()
            .load(&guest.component())
            .unwrap()
            .configure(&model(), &Parameters::default())
            .unwrap_err()
    };
    let trap = configured("unreachable", "");
    assert!(
        matches!(trap, ConfigureError::Fault(Fault::Trap { reason: "unreachable" })),
        "{trap:?}"
    );
    let endless = configured("(loop $l (br $l)) i32.const 0", "");
    assert!(
        matches!(endless, ConfigureError::Fault(Fault::OutOfFuel)),
        "{endless:?}"
    );
    // At 16: `err`, and the text at 32.
    let refuses = r#"(data (i32.const 16) "\01\00\00\00\20\00\00\00\07\00\00\00") (data (i32.const 32) "too\1bold")"#;
    let refused = configured("i32.const 16", refuses);
    assert_eq!(told(&refused), "the policy refuses its configuration: too old");
    // A reason of 1 MB that lies outside its memory.
    let outside = r#"(data (i32.const 16) "\01\00\00\00\20\00\00\00\00\00\10\00")"#;
    let broken = configured("i32.const 16", outside);
    assert!(matches!(broken, ConfigureError::Fault(Fault::Contract)), "{broken:?}");
}

#[test]
fn a_network_too_large_for_the_guests_memory_is_a_fault_of_configure() {
    let policy = host().load(&puppet("p")).unwrap();
    let model = ModelFacts {
        classes: 10,
        exit_costs: vec![1.0; 1 << 20],
    };
    let error = policy.configure(&model, &Parameters::default()).unwrap_err();
    assert!(matches!(error, ConfigureError::Fault(_)), "{error:?}");
}
