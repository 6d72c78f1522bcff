//! The demo, as the README starts it.

use serde_json::Value;

use crate::device::offramp;

#[test]
fn the_demo_specializes_swaps_the_policy_and_loses_nothing() {
    let output = offramp().args(["demo", "--json"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("page: http://127.0.0.1:"), "{errors}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("{told:#}");

    let number = |path: &str| {
        told.pointer(path)
            .and_then(Value::as_f64)
            .unwrap_or_else(|| panic!("no {path}"))
    };
    for part in ["subset", "all"] {
        for heads in ["frozen", "specialized"] {
            for field in ["accuracy", "cost_macs", "cost_ms", "disagreement"] {
                assert!(number(&format!("/{part}/{heads}/{field}")) >= 0.0);
            }
            let shares = told[part][heads]["exit_share"].as_array().unwrap();
            assert!((shares.iter().filter_map(Value::as_f64).sum::<f64>() - 1.0).abs() < 1e-6);
        }
    }
    assert!(
        number("/subset/specialized/cost_macs") < number("/subset/frozen/cost_macs"),
        "what is often seen becomes cheap"
    );
    assert!(
        number("/subset/specialized/accuracy") >= number("/subset/frozen/accuracy"),
        "and not worse"
    );

    assert_eq!(told["policy_swap"]["frames_lost"], 0);
    assert_ne!(told["policy_swap"]["from"], told["policy_swap"]["to"]);
    assert_eq!(told["summaries"]["sent"], told["summaries"]["ingested"]);
    assert_eq!(told["summaries"]["duplicates"], 0);
}
