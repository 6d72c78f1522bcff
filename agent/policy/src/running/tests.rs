use std::time::Duration;

use offramp_core::{AuditResult, SplitMix64};

use super::*;
use crate::guests::{self, Guest as Wat, WIT};
use crate::host::PolicyHost;
use crate::limits::Limits;
use crate::{ConfigureError, Instance, RestoreError, Value};

const SHIPPED: [(&str, &[u8]); 8] = [
    (
        "threshold",
        include_bytes!("../../../../plugins/prebuilt/threshold.wasm"),
    ),
    ("entropy", include_bytes!("../../../../plugins/prebuilt/entropy.wasm")),
    ("patience", include_bytes!("../../../../plugins/prebuilt/patience.wasm")),
    ("temporal", include_bytes!("../../../../plugins/prebuilt/temporal.wasm")),
    ("budget", include_bytes!("../../../../plugins/prebuilt/budget.wasm")),
    ("deadline", include_bytes!("../../../../plugins/prebuilt/deadline.wasm")),
    (
        "threshold 1.0",
        include_bytes!("../../tests/frozen/threshold-1.0.0.wasm"),
    ),
    ("patience 1.0", include_bytes!("../../tests/frozen/patience-1.0.0.wasm")),
];

fn model() -> ModelFacts {
    ModelFacts {
        classes: 10,
        exit_costs: vec![0.1, 0.4, 0.7, 1.0],
    }
}

/// The same policy by the short way and as the component that it is.
fn both(file: &[u8]) -> [crate::Policy; 2] {
    // However slow the machine is.
    let deadline = Duration::from_secs(3_600);
    let host = || {
        PolicyHost::new(Limits {
            deadline,
            ..Limits::default()
        })
        .unwrap()
    };
    let (direct, component) = (host().load(file), host().load_by(file, |_| None));
    let both = [direct.unwrap(), component.unwrap()];
    assert_eq!(both.each_ref().map(|policy| policy.shape().is_direct()), [true, false]);
    both
}

/// Some frames, the same for the same seed: what is decided about them, and the fuel that it takes.
fn frames(instance: &mut Instance, seed: u64) -> Vec<(Verdict, u64)> {
    let mut random = SplitMix64(seed);
    let mut number = move || (random.next() >> 40) as f32 / 16_777_216.0;
    let mut told = Vec::new();
    for frame in 0..300_u32 {
        let class = (number() * 10.0) as u32;
        for exit in 0..3 {
            let view = ExitView {
                exit,
                exits: 4,
                class,
                confidence: number(),
                margin: number(),
                entropy: number(),
                agreement: number() > 0.5,
                change: if frame % 7 == 0 { f32::NAN } else { number() },
                cost: 0.2 * exit as f32,
                next_cost: 0.3,
                time_left: 100.0 * number() - 10.0,
                queue_depth: frame % 3,
                temperature: 20.0 + 80.0 * number(),
                power_budget: f32::NAN,
                battery: number(),
                threshold: number(),
            };
            let verdict = instance.decide(&view).unwrap();
            told.push((verdict, instance.fuel()));
        }
        let outcome = Outcome {
            exit: frame % 4,
            class,
            confidence: number(),
            cost: number(),
            latency: 10.0 * number(),
            interval: 30.0,
            energy: number(),
            temperature: 100.0 * number(),
            hurried: number() > 0.9,
            fault: false,
            audit: [AuditResult::None, AuditResult::Agreed, AuditResult::Differed][frame as usize % 3],
        };
        instance.observe(&outcome).unwrap();
    }
    told
}

#[test]
fn both_ways_decide_the_same_with_the_same_fuel_and_save_the_same() {
    for (name, file) in SHIPPED {
        let told = both(file).map(|policy| {
            let mut instance = policy.configure(&model(), &Parameters::default()).unwrap();
            let first = frames(&mut instance, 1);
            let saved = instance.save().unwrap();
            let mut next = policy.configure(&model(), &Parameters::default()).unwrap();
            let restored = saved.as_ref().map(|saved| next.restore(saved));
            (first, saved, restored, frames(&mut next, 2))
        });
        assert_eq!(told[0], told[1], "{name}");
        assert!(
            told[0].0.iter().any(|(verdict, _)| *verdict != told[0].0[0].0),
            "{name}"
        );
    }
}

#[test]
fn both_ways_take_parameters_of_every_kind_and_pass_on_why_some_are_refused() {
    let parameters = |list: Vec<(&str, Value)>| Parameters::new(list).unwrap();
    let (_, threshold) = SHIPPED[0];
    let good = parameters(vec![
        ("threshold", Value::Number(0.25)),
        ("threshold.1", Value::Number(0.75)),
        ("threshold.class.3", Value::Number(1.0)),
    ]);
    let told = both(threshold).map(|policy| frames(&mut policy.configure(&model(), &good).unwrap(), 3));
    assert_eq!(told[0], told[1]);
    for bad in [
        ("threshold", Value::Text("grün".into())),
        ("threshold", Value::Flag(true)),
        ("threshold", Value::Number(-1.5)),
        ("wrong", Value::Integer(i64::MIN)),
    ] {
        let reasons = both(threshold).map(|policy| {
            let refused = policy.configure(&model(), &parameters(vec![bad.clone()]));
            match refused.map(drop) {
                Err(ConfigureError::Refused { reason }) => reason,
                other => panic!("{bad:?}: {other:?}"),
            }
        });
        assert_eq!(reasons[0], reasons[1]);
    }
    let refused = both(SHIPPED[3].1).map(|policy| {
        let mut instance = policy.configure(&model(), &Parameters::default()).unwrap();
        instance.restore(b"of another policy")
    });
    assert!(matches!(refused[0], Err(RestoreError::Refused { .. })), "{refused:?}");
    assert_eq!(refused[0], refused[1]);
}

/// Parameters of every kind, with names and a text of several lengths.
fn every_kind() -> Parameters {
    let list = [
        ("a", Value::Flag(true)),
        ("bb", Value::Integer(-2)),
        ("ccc", Value::Number(1.5)),
        ("dddd", Value::Text("grün".into())),
        ("e", Value::Text(String::new())),
    ];
    Parameters::new(list).unwrap()
}

/// What a policy answers to a call of each function, and the fuel that it takes.
fn told(policy: &crate::Policy) -> Vec<String> {
    let limits = policy.shared().limits;
    let mut instance = match policy.configure(&model(), &every_kind()) {
        Ok(instance) => instance,
        Err(error) => return vec![format!("{error:?}")],
    };
    let mut told = vec![format!("{}", instance.fuel_used(limits.configure_fuel))];
    let mut tell = |instance: &Instance, answer: String, budget| {
        let fuel = instance.ended().map_or_else(|| instance.fuel_used(budget), |_| 0);
        told.push(format!("{answer} {fuel}"));
    };
    let answer = format!("{:?}", instance.restore(b"12345678"));
    tell(&instance, answer, limits.configure_fuel);
    let view = ExitView {
        exit: 0,
        exits: 4,
        class: 3,
        confidence: 0.5,
        margin: 0.2,
        entropy: 1.1,
        agreement: true,
        change: f32::NAN,
        cost: 0.1,
        next_cost: 0.3,
        time_left: 20.0,
        queue_depth: 1,
        temperature: 50.0,
        power_budget: 10.0,
        battery: f32::NAN,
        threshold: 0.8,
    };
    let answer = format!("{:?}", instance.decide(&view));
    tell(&instance, answer, limits.decide_fuel);
    let outcome = Outcome {
        exit: 1,
        class: 3,
        confidence: 0.9,
        cost: 0.2,
        latency: 3.0,
        interval: f32::NAN,
        energy: 0.5,
        temperature: 50.0,
        hurried: true,
        fault: false,
        audit: AuditResult::Differed,
    };
    let answer = format!("{:?}", instance.observe(&outcome));
    tell(&instance, answer, limits.decide_fuel);
    let answer = format!("{:?}", instance.save());
    tell(&instance, answer, limits.configure_fuel);
    told
}

/// A guest whose `save` gives a piece of its memory, as a list that lies at 16.
fn dumping(place: u32, length: u32) -> String {
    format!(r#"(data (i32.const 16) "{}{}")"#, bytes(place), bytes(length))
}

fn bytes(number: u32) -> String {
    number.to_le_bytes().map(|byte| format!("\\{byte:02x}")).concat()
}

/// A guest of every function.
fn plain() -> Wat<'static> {
    Wat {
        world: "stateful-policy",
        ..Wat::default()
    }
}

#[test]
fn parameters_and_costs_lie_in_memory_as_the_contract_says() {
    let fields = dumping(1024, 256);
    let guest = Wat {
        save: "i32.const 16",
        fields: &fields,
        ..plain()
    };
    let saved = both(&guest.component()).map(|policy| {
        let mut instance = policy.configure(&model(), &every_kind()).unwrap();
        instance.save().unwrap().unwrap()
    });
    assert_eq!(saved[0], saved[1]);
    let memory = &saved[0];
    let number = |at: usize| u32::from_le_bytes(memory[at..][..4].try_into().unwrap());
    let text = |at: usize| {
        let (place, length) = (number(at) as usize - 1024, number(at + 4) as usize);
        str::from_utf8(&memory[place..][..length]).unwrap()
    };
    let costs: Vec<f32> = (0..4).map(|i| f32::from_bits(number(4 * i))).collect();
    assert_eq!(costs, model().exit_costs);
    // Five records of 24 bytes behind the costs.
    let record = |n: usize| 16 + 24 * n;
    let names: Vec<&str> = (0..5).map(|n| text(record(n))).collect();
    assert_eq!(names, ["a", "bb", "ccc", "dddd", "e"]);
    let cases: Vec<u8> = (0..5).map(|n| memory[record(n) + 8]).collect();
    assert_eq!(cases, [0, 1, 2, 3, 3]);
    assert_eq!(memory[record(0) + 16], 1);
    assert_eq!(memory[record(1) + 16..][..8], (-2_i64).to_le_bytes());
    assert_eq!(memory[record(2) + 16..][..8], 1.5_f64.to_le_bytes());
    assert_eq!((text(record(3) + 16), text(record(4) + 16)), ("grün", ""));
}

#[test]
fn whatever_a_guest_gives_both_ways_take_it_alike() {
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, guest: Wat<'_>| cases.push((name.to_owned(), guest.component()));
    let log = |level: u32, place: u32, length: u32| {
        let [level, place, length] = [level, place, length].map(u32::cast_signed);
        format!("(call $log (i32.const {level}) (i32.const {place}) (i32.const {length}))")
    };

    // Places and verdicts that are none: the memory has 65536 bytes.
    for at in [1, 2, 4, 8, 65520, 65524, 65526, 65528, 65532, 65536, -1, -4, -8] {
        let body = format!("i32.const {at}");
        add(
            &format!("configure gives {at}"),
            Wat {
                configure: &body,
                ..plain()
            },
        );
        add(&format!("save gives {at}"), Wat { save: &body, ..plain() });
        add(
            &format!("restore gives {at}"),
            Wat {
                restore: &body,
                ..plain()
            },
        );
        add(
            &format!("decide gives {at}"),
            Wat {
                decide: &body,
                ..plain()
            },
        );
    }
    // Results, lists and messages: a case or a level, a place and a length. There is no UTF-8 at 96.
    let no_text = r#"(data (i32.const 96) "\ff\c3")"#;
    for (case, place, length) in [
        (0, u32::MAX, u32::MAX),
        (2, 0, 0),
        (256, 0, 0),
        (257, 32, 3),
        (1, 65536, 0),
        (1, 65537, 0),
        (1, 65535, 1),
        (1, 65535, 2),
        (1, u32::MAX, u32::MAX),
        (1, 0, 4096),
        (1, 0, 4097),
        (1, 4, u32::MAX - 3),
        (1, 96, 1),
    ] {
        let name = format!("{case} {place} {length}");
        let fields = format!(
            r#"(data (i32.const 16) "{}{}{}")"#,
            bytes(case),
            bytes(place),
            bytes(length)
        ) + no_text;
        let guest = Wat {
            fields: &fields,
            ..plain()
        };
        let gives = "i32.const 16";
        add(
            &format!("configure gives {name}"),
            Wat {
                configure: gives,
                ..guest
            },
        );
        add(
            &format!("restore gives {name}"),
            Wat {
                restore: gives,
                ..guest
            },
        );
        let list = dumping(place, length);
        let guest = Wat {
            save: gives,
            fields: &list,
            ..plain()
        };
        add(&format!("save gives {name}"), guest);
        let says = log(case, place, length) + " i32.const 1";
        add(
            &format!("decide says {name}"),
            Wat {
                decide: &says,
                fields: no_text,
                ..plain()
            },
        );
    }
    // What tidies up afterwards, in time or not.
    for function in ["guest@1.1.0#configure", "state@1.1.0#save", "state@1.1.0#restore"] {
        let spoils = "(i32.store (i32.const 16) (i32.const 77)) (i32.store (i32.const 20) (i32.const 99))";
        for body in ["", "unreachable", &log(0, 0, 0), "(loop $l (br $l))", spoils] {
            // As much as may be saved, and more.
            for length in [1024, 65537] {
                let after = format!(r#"(func (export "cabi_post_offramp:policy/{function}") (param i32) {body})"#);
                let fields = after + &dumping(0, length);
                let guest = Wat {
                    pages: 4,
                    save: "i32.const 16",
                    fields: &fields,
                    ..plain()
                };
                add(&format!("after {function}, {length}: {body}"), guest);
            }
        }
    }
    // Memory that is none, misaligned, overlapping, dirty, new, or given late.
    let fields = dumping(0, 2048) + r#"(data (i32.const 1024) "\aa\aa\aa\aa\aa\aa\aa\aa\aa\aa\aa\aa\aa\aa\aa\aa")"#;
    for realloc in [
        "i32.const -1",
        "i32.const 65536",
        "i32.const 3",
        "i32.const 65532",
        "i32.const 8",
        "i32.const 0",
        "i32.const 1024",
        "unreachable",
        &(log(0, 0, 0) + " i32.const 8"),
        "(drop (memory.grow (i32.const 1))) i32.const 65536",
        "(drop (memory.grow (i32.const 100))) i32.const 65536",
        "(loop $l (br $l)) i32.const 0",
        // Where nothing is asked for, the place of nothing is checked, too.
        "(if (result i32) (i32.eqz (local.get 3)) (then (i32.const 65536)) (else (i32.const 64)))",
        "(if (result i32) (i32.eqz (local.get 3)) (then (i32.const 65544)) (else (i32.const 64)))",
        // Keeps what was asked for, and in which order.
        "(i32.store (i32.const 1000) (i32.add (i32.mul (i32.load (i32.const 1000)) (i32.const 31)) \
         (i32.add (local.get 2) (local.get 3)))) (i32.const 64)",
    ] {
        let module = Wat {
            save: "i32.const 16",
            fields: &fields,
            ..plain()
        }
        .module();
        let from = module.find("(local $at i32)").unwrap();
        let end = "(local.get $at))\n";
        let to = module.find(end).unwrap() + end.len() - 2;
        let module = [&module[..from], realloc, &module[to..]].concat();
        cases.push((
            format!("realloc: {realloc}"),
            guests::component(WIT, "stateful-policy", &module),
        ));
    }
    let mut answers = std::collections::BTreeSet::new();
    for (name, file) in cases {
        let [direct, component] = both(&file).map(|policy| told(&policy));
        assert_eq!(direct, component, "{name}");
        answers.extend(direct);
    }
    // They were of every kind: there is something to take alike.
    for kind in [
        "Contract",
        "Refused",
        "OutOfFuel",
        "Memory",
        "unreachable",
        "misuse of the component",
        "Ok(Some",
        "State",
    ] {
        assert!(answers.iter().any(|answer| answer.contains(kind)), "{kind}");
    }
}
