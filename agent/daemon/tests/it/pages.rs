//! The pages about policies, followed to the letter.

use std::collections::BTreeMap;
use std::path::Path;

use offramp::config::Config;
use offramp::judge::{PolicySource, SHIPPED, Workshop};
use offramp::package;
use offramp_policy_build::Toolchain;
use offramp_proto::Parameter;
use offramp_test_support::temp_dir;

use crate::device::offramp;

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/policies")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks of code in a language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    page.split(begin.as_str())
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

#[test]
fn a_new_user_gets_from_nothing_to_a_running_policy_by_the_page() {
    Toolchain::find_or_install().unwrap_or_else(|error| panic!("{error}"));
    let page = page("writing.md");
    let folder = temp_dir();
    let commands: Vec<&str> = blocks(&page, "sh").into_iter().flat_map(str::lines).collect();
    assert_eq!(commands.len(), 5, "{commands:?}");
    let mut printed = String::new();
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        assert_eq!(words[0], "offramp");
        let output = offramp().args(&words[1..]).current_dir(folder.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
        printed = String::from_utf8(output.stdout).unwrap();
        match words[2] {
            "build" => assert!(printed.contains("lead.wasm: "), "{printed}"),
            "check" => assert!(printed.contains("is a policy that this agent runs"), "{printed}"),
            "test" => assert!(
                printed.contains("fashion") && printed.contains("cifar-100"),
                "{printed}"
            ),
            _ => {}
        }
        assert!(!errors.contains("failed"), "{command}: {errors}");
    }
    // The last one has run the agent.
    let predictions: Vec<serde_json::Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(predictions.len() > 1_000, "{} predictions", predictions.len());
    let early = predictions.iter().filter(|prediction| prediction["exit"] == 0).count();
    assert!(early > predictions.len() / 2, "the policy lets them go");
}

#[test]
fn what_the_pages_of_the_shipped_policies_say_to_write_is_accepted() {
    let package = package::embedded().unwrap();
    let workshop = Workshop::new(&package).unwrap();
    let overview = page("README.md");
    for (name, _) in SHIPPED {
        assert!(overview.contains(&format!("[{name}]({name}.md)")));
        let page = page(&format!("{name}.md"));
        let device = "[device]\nid = \"a\"\n[camera]\nsource = \"sample\"\n";
        let toml = blocks(&page, "toml");
        let config = Config::parse(Path::new("offramp.toml"), &format!("{device}{}", toml[0])).unwrap();
        assert_eq!(config.policy.name.as_deref(), Some(name));
        let push = page
            .split("--parameter ")
            .skip(1)
            .map(|rest| rest.split([' ', '`']).next().unwrap());
        let push: BTreeMap<String, Parameter> = push.map(|text| Parameter::parse(text).unwrap()).collect();
        assert!(
            !push.is_empty() && push.keys().eq(config.policy.parameters.keys()),
            "{name}"
        );
        for parameters in [config.policy.parameters, push] {
            let source = PolicySource::shipped(name, parameters).unwrap();
            workshop
                .prepare(&source)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn a_signed_policy_is_told_from_an_altered_and_a_strangers_one() {
    let folder = temp_dir();
    let run = |arguments: &[&str]| {
        let output = offramp().args(arguments).current_dir(folder.path()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let component = SHIPPED[0].1;
    std::fs::write(folder.path().join("gate.wasm"), component).unwrap();
    let sign = ["policy", "sign", "gate.wasm", "--key", "key", "--version", "7"];
    let (made, _, errors) = run(&sign);
    assert!(!made && errors.contains("--new-key"), "{errors}");
    let (made, printed, errors) = run(&[&sign[..], &["--new-key"]].concat());
    assert!(made, "{errors}");
    let key = printed.lines().last().unwrap();
    let (again, _, errors) = run(&[&sign[..], &["--new-key"]].concat());
    assert!(
        !again && errors.contains("cannot be made"),
        "a key is never overwritten: {errors}"
    );
    let check = ["policy", "check", "gate.wasm", "--trusted", key];
    let (good, printed, errors) = run(&check);
    assert!(good && printed.contains("gate 7"), "{printed}{errors}");

    let config = |key: &str| {
        let text = format!(
            "[device]\nid = \"a\"\n[camera]\nsource = \"sample\"\n[policy]\nfile = \"gate.wasm\"\ntrusted_key = \"{key}\"\n"
        );
        std::fs::write(folder.path().join("offramp.toml"), text).unwrap();
    };
    config(key);
    let (runs, predictions, errors) = run(&["run", "--config", "offramp.toml"]);
    assert!(runs && !predictions.is_empty(), "{errors}");

    // A stranger's signature, no signature, and another component.
    let stranger = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    config(stranger);
    let (runs, _, errors) = run(&["run", "--config", "offramp.toml"]);
    assert!(
        !runs && errors.contains("signature") && errors.contains("is refused"),
        "{errors}"
    );
    std::fs::write(folder.path().join("gate.wasm"), SHIPPED[1].1).unwrap();
    let (good, _, errors) = run(&check);
    assert!(!good && errors.contains("of another component"), "{errors}");
    std::fs::remove_file(folder.path().join("gate.wasm.sig")).unwrap();
    let (good, _, errors) = run(&check);
    assert!(!good && errors.contains("has no signature"), "{errors}");
}

/// What `offramp policy test` says of a policy on the embedded traces, by the trace's name.
fn tested(arguments: &[&str]) -> BTreeMap<String, serde_json::Value> {
    let output = offramp()
        .args(["policy", "test", "--json"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    rows.into_iter()
        .map(|row| (row["trace"].as_str().unwrap().to_owned(), row))
        .collect()
}

#[test]
fn on_traces_each_shipped_policy_does_what_its_page_says() {
    let number = |row: &serde_json::Value, field: &str| row[field].as_f64().unwrap();
    for (name, _) in SHIPPED {
        for (trace, row) in tested(&[name]) {
            assert_eq!(
                (number(&row, "unanswered"), number(&row, "faults")),
                (0.0, 0.0),
                "{name}, {trace}"
            );
            // What the built-in rule reaches at the same cost, less what is allowed for entropy on CIFAR-100.
            let behind = number(&row, "rule_at_cost") - number(&row, "accuracy");
            assert!(behind < 0.02, "{name} is {behind} behind the rule on {trace}");
        }
    }
    let threshold = tested(&["threshold"]);
    // Where nothing is limited and nothing is late, they are the threshold policy.
    for same in ["budget", "deadline"] {
        for (trace, row) in tested(&[same]) {
            assert_eq!(row["exits"], threshold[&trace]["exits"], "{same}, {trace}");
        }
    }
    for (trace, row) in tested(&["budget", "--parameter", "cost=0.3"]) {
        // The integrator settles over the first hundreds of 2,000 frames.
        assert!(number(&row, "cost") < 0.33, "{trace} costs {}", row["cost"]);
    }
    let still = "fashion, scenes";
    let temporal = &tested(&["temporal"])[still];
    assert!(number(temporal, "cost") < 0.7 * number(&threshold[still], "cost"));
    assert!(number(temporal, "accuracy") > number(&threshold[still], "accuracy") - 0.015);
    let patience = &tested(&["patience"])["fashion"];
    assert!(number(patience, "accuracy") > number(patience, "rule_at_cost"));
}
