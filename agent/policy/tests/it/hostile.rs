//! Components that are no policies, and policies that misbehave: each is refused or contained, with a
//! reason that its operator can act on.

use offramp_core::{ExitView, SplitMix64, Verdict};
use offramp_policy::{
    Carry, CarryError, ConfigureError, Fault, Instance, Ladder, LadderEvent, LadderRules, LoadError, ModelFacts,
    Parameters, RestoreError,
};

use crate::guests::{Guest, LOG_IMPORT, WIT, class, component, counter, puppet};
use crate::{host, model, outcome, told, unhurried, view};

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
fn lengths_and_counts_that_the_file_does_not_have_are_refused() {
    let host = host();
    let name = b"offramp:policy/guest@1.0.0";
    let mut export = vec![1, 0, name.len() as u8];
    export.extend_from_slice(name);
    // An instance, the first, of no type in particular.
    export.extend_from_slice(&[5, 0, 0]);
    let with = |rest: &[u8]| {
        let mut component = b"\0asm\x0d\0\x01\0".to_vec();
        component.extend_from_slice(&[11, export.len() as u8]);
        component.extend_from_slice(&export);
        component.extend_from_slice(rest);
        component
    };
    let module_of_1000_bytes = b"\x01\xe8\x07\0asm\x01\0\0\0";
    let very_many_core_instances = [2, 5, 0xff, 0xff, 0xff, 0xff, 0x0f].repeat(2);
    for rest in [&module_of_1000_bytes[..], &very_many_core_instances] {
        let refused = host.load(&with(rest)).unwrap_err();
        // Not for what the outline says: it got further than that.
        assert!(
            matches!(refused, LoadError::Invalid { .. } | LoadError::Malformed { .. }),
            "{refused:?}"
        );
    }
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

fn start(component: &[u8]) -> Instance {
    let policy = host().load(component).unwrap();
    policy.configure(&model(), &Parameters::default()).unwrap()
}

#[test]
fn a_file_of_50_mb_is_refused_by_its_size() {
    let mut file = puppet("p");
    file.resize(50 << 20, 0);
    assert!(matches!(refusal(&file), LoadError::TooLarge { bytes: 52_428_800, .. }));
}

/// What a body of a function may do wrong, and how that is told.
const WRONGS: [(&str, Fault); 6] = [
    ("unreachable", Fault::Trap { reason: "unreachable" }),
    ("(loop $l (br $l))", Fault::OutOfFuel),
    ("(call $deep)", Fault::Stack),
    ("(drop (memory.grow (i32.const 65535)))", Fault::Memory),
    (
        "(drop (table.grow $table (ref.null func) (i32.const 5000)))",
        Fault::Memory,
    ),
    (
        "(call $log (i32.const 0) (i32.const 1024) (i32.const 5000))",
        Fault::Contract,
    ),
];

#[test]
fn each_misbehaviour_in_each_export_is_contained() {
    let host = host();
    let deep = "(func $deep (call $deep) (call $deep))";
    for (body, fault) in WRONGS {
        let value = format!("{body} i32.const 0");
        let wrong = Guest {
            world: "stateful-policy",
            fields: deep,
            ..Guest::default()
        };
        let load = |guest: Guest<'_>| host.load(&guest.component());
        let started = format!("(start $go) (func $go {body}) {deep}");
        let error = load(Guest {
            fields: &started,
            ..wrong
        })
        .unwrap_err();
        // Its imports are not connected yet: there is nothing to log to.
        let expected = if body.contains("$log") {
            Fault::Trap {
                reason: "indirect call to null",
            }
        } else {
            fault
        };
        assert!(
            matches!(error, LoadError::Start(found) if found == expected),
            "{body}: {error:?}"
        );
        let configured = load(Guest {
            configure: &value,
            ..wrong
        })
        .unwrap()
        .configure(&model(), &Parameters::default());
        assert!(
            matches!(configured, Err(ConfigureError::Fault(found)) if found == fault),
            "{body}: {configured:?}"
        );
        let running = |guest| {
            let policy = load(guest).unwrap();
            policy.configure(&model(), &Parameters::default()).unwrap()
        };
        let mut decides = running(Guest {
            decide: &value,
            ..wrong
        });
        assert_eq!(decides.decide(&view(0, 0, 0.5)), Err(fault), "{body}");
        let mut observes = running(Guest { observe: body, ..wrong });
        assert_eq!(observes.observe(&outcome()), Err(fault), "{body}");
        assert_eq!(observes.decide(&view(0, 0, 0.5)), Err(fault), "it has ended");
        let mut saves = running(Guest { save: &value, ..wrong });
        assert_eq!(saves.save(), Err(fault), "{body}");
        let mut restores = running(Guest {
            restore: &value,
            ..wrong
        });
        assert_eq!(restores.restore(b"1234"), Err(RestoreError::Fault(fault)), "{body}");
        assert_eq!(restores.ended(), Some(fault));
        for mut ended in [decides, observes, saves, restores] {
            ended.restart().unwrap();
            assert_eq!(ended.ended(), None);
        }
    }
}

#[test]
fn state_above_its_bound_is_a_fault_and_below_it_is_none() {
    let saves = |bytes: u32| {
        let [a, b, c, d] = bytes.to_le_bytes();
        let fields = format!(r#"(data (i32.const 16) "\00\00\00\00\{a:02x}\{b:02x}\{c:02x}\{d:02x}")"#);
        let guest = Guest {
            world: "stateful-policy",
            pages: 4,
            save: "i32.const 16",
            fields: &fields,
            ..Guest::default()
        };
        start(&guest.component()).save()
    };
    assert_eq!(saves(0), Ok(None));
    assert_eq!(saves(65536).unwrap().map(|saved| saved.len()), Some(65536));
    assert_eq!(saves(65537), Err(Fault::State));
    assert_eq!(saves(4 << 16), Err(Fault::State));
    assert_eq!(saves(u32::MAX), Err(Fault::Contract), "it lies outside its memory");
}

#[test]
fn facts_that_are_no_numbers_or_out_of_range_do_no_harm() {
    let mut policy = start(&puppet("p"));
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, f32::MAX] {
        let odd = ExitView {
            exit: u32::MAX,
            exits: 0,
            margin: odd,
            entropy: odd,
            change: odd,
            cost: odd,
            next_cost: odd,
            time_left: odd,
            temperature: odd,
            power_budget: odd,
            battery: odd,
            threshold: odd,
            queue_depth: u32::MAX,
            ..view(0, 1, odd)
        };
        assert_eq!(policy.decide(&odd), Ok(Verdict::Leave));
    }
}

#[test]
fn hundreds_of_damaged_files_are_refused_or_contained() {
    let host = host();
    let whole = counter("whole");
    let mut random = SplitMix64(5);
    let mut below = |n: usize| (random.next() % n as u64) as usize;
    let (mut loaded, mut refused) = (0, 0);
    for round in 0..400 {
        let mut damaged = whole.clone();
        for _ in 0..=round % 8 {
            let at = below(damaged.len());
            damaged[at] = below(256) as u8;
        }
        if round % 4 == 0 {
            damaged.truncate(below(whole.len()));
        }
        let Ok(policy) = host.load(&damaged) else {
            refused += 1;
            continue;
        };
        let Ok(mut instance) = policy.configure(&model(), &Parameters::default()) else {
            continue;
        };
        loaded += 1;
        // Whatever it answers, it answers.
        let _ = instance.decide(&view(0, 1, 0.5));
        let _ = instance.observe(&outcome());
        let _ = instance.save();
        let _ = instance.restore(b"1234");
    }
    assert!(loaded > 0 && refused > 0, "{loaded} loaded, {refused} refused");
}

#[test]
fn the_stream_goes_on_whatever_the_policy_does() {
    let host = host();
    let deep = "(func $deep (call $deep) (call $deep))";
    for (body, fault) in WRONGS {
        let value = format!("{body} i32.const 0");
        let guest = Guest {
            world: "stateful-policy",
            fields: deep,
            ..Guest::default()
        };
        for (place, hostile) in [
            (
                "decide",
                Guest {
                    decide: &value,
                    ..guest
                },
            ),
            ("observe", Guest { observe: body, ..guest }),
            (
                "restore",
                Guest {
                    restore: &value,
                    ..guest
                },
            ),
            ("save", Guest { save: &value, ..guest }),
        ] {
            let policies =
                [counter("good"), hostile.component(), counter("next")].map(|file| host.load(&file).unwrap());
            let mut ladder = Ladder::new(LadderRules {
                trial: 1,
                budget: None,
                ..LadderRules::default()
            });
            let mut events = Vec::new();
            for frame in 0..30 {
                if frame % 10 == 0 {
                    let policy = policies[frame / 10]
                        .configure(&model(), &Parameters::default())
                        .unwrap();
                    ladder.swap(policy, Carry::State);
                }
                ladder.start_frame(&mut |event| events.push(event));
                let view = view(0, 1, 0.9);
                let verdict = ladder.decide(&view, &mut |event| events.push(event));
                // There is a verdict for every frame: the policy's, or the built-in rule's.
                let _ = verdict.unwrap_or_else(|| view.rule());
                ladder.observe(&outcome(), &mut |event| events.push(event));
            }
            assert_eq!(ladder.active(), Some(policies[2].digest()), "{place} {body}");
            let told = events.iter().any(|event| match event {
                LadderEvent::Faulted { fault: found, .. } => *found == fault,
                LadderEvent::NotCarried { why, .. } => match why {
                    CarryError::Save(found) | CarryError::Restore(RestoreError::Fault(found)) => *found == fault,
                    CarryError::Restore(_) => false,
                },
                _ => false,
            });
            assert!(told, "{place} {body}: {events:?}");
        }
    }
}

/// A policy with more functions.
fn with(functions: &str) -> LoadError {
    let guest = Guest {
        fields: functions,
        ..Guest::default()
    };
    let file = guest.component();
    assert!(file.len() <= unhurried().component_bytes, "{} bytes", file.len());
    refusal(&file)
}

#[test]
fn what_would_take_long_to_compile_is_refused_before() {
    let huge = format!(
        "(func (param i64) {})",
        "(local.set 0 (i64.mul (local.get 0) (local.get 0)))".repeat(20_000)
    );
    let nested = format!("(func {}{})", "(block ".repeat(30_000), ")".repeat(30_000));
    // Each join of blocks may be one of each variable: 18 kB that would take seconds and gigabytes.
    let uses: String = (1..=1000)
        .map(|local| format!("(local.set {local} (i64.add (local.get {local}) (i64.const 1)))"))
        .collect();
    let joins = format!(
        "(func (param i32) (local {}) {} {uses} {})",
        "i64 ".repeat(1000),
        "(loop (br_if 0 (local.get 0)) ".repeat(3000),
        ")".repeat(3000)
    );
    for (functions, what) in [
        (joins, "pairs of a local variable and a block"),
        (huge, "bytes in a function"),
        (nested, "bytes in a function"),
        ("(func)".repeat(5000), "functions"),
        (
            format!("(func (local {}))", "i64 ".repeat(5000)),
            "local variables in a function",
        ),
    ] {
        let error = with(&functions);
        assert!(
            matches!(error, LoadError::TooDear { what: found, .. } if found == what),
            "{error:?}"
        );
    }
}

#[test]
fn components_that_double_at_every_step_are_refused() {
    let mut text = String::from("(component (component $c0)");
    for step in 1..40 {
        let before = step - 1;
        text += &format!(
            "(component $c{step} (alias outer 1 $c{before} (component $c)) (instance (instantiate $c)) \
             (instance (instantiate $c)))"
        );
    }
    let file = wat::parse_str(text + "(instance (instantiate $c39)))").unwrap();
    let error = refusal(&file);
    assert!(
        told(&error).contains("instantiations by a nested component"),
        "{}",
        told(&error)
    );
}
