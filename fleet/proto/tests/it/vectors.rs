//! Vectors frozen per protocol version: what version 1 wrote once, every later crate must read.
//!
//! A new version adds a folder; nobody edits an old one. `OFFRAMP_BLESS=1` writes vectors that are missing.

use std::fmt::Debug;
use std::path::Path;

use cddl_cat::validate_cbor_bytes;
use offramp_proto::{Message, decode, encode};

use crate::sample;

const CDDL: &str = include_str!("../../offramp.cddl");

fn hold<M: Message + PartialEq + Debug>(rule: &str, message: &M) {
    hold_as(rule, rule, message);
}

/// Holds a message to a rule of the contract, and to the vector of another name.
fn hold_as<M: Message + PartialEq + Debug>(rule: &str, name: &str, message: &M) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vectors/v1")
        .join(format!("{name}.hex"));
    let bytes = encode(message).unwrap();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    if !path.exists() && std::env::var_os("OFFRAMP_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &hex).unwrap();
    }
    let frozen = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(frozen.trim(), hex, "{name}: the bytes on the wire have changed");
    assert_eq!(&decode::<M>(&bytes).unwrap(), message, "{rule}");
    validate_cbor_bytes(rule, CDDL, &bytes).unwrap_or_else(|e| panic!("{rule} does not fit offramp.cddl: {e}"));
}

#[test]
fn every_message_has_the_frozen_bytes_and_fits_the_published_contract() {
    hold("birth", &sample::birth());
    hold_as("birth", "birth-told-again", &sample::birth_told_again());
    hold("death", &sample::death());
    hold("summary", &sample::summary());
    hold_as("summary", "summary-guard", &sample::summary_with_guard());
    hold_as("summary", "summary-cameras", &sample::summary_with_cameras());
    hold_as("summary", "summary-control", &sample::summary_with_control());
    hold("event", &sample::event());
    hold("reported", &sample::reported());
    hold_as("reported", "reported-generation", &sample::reported_with_generation());
    hold("desired", &sample::desired());
    hold_as("desired", "desired-budget", &sample::desired_with_budget());
    hold_as("desired", "desired-log", &sample::desired_with_log());
    hold_as("desired", "desired-keys", &sample::desired_with_keys());
    hold_as("desired", "desired-model", &sample::desired_with_model());
    hold_as("reported", "reported-keys", &sample::reported_with_keys());
    hold_as("desired", "desired-own-policy", &sample::desired_of_its_own());
    hold("policy-statement", &sample::policy_statement());
    hold("request", &sample::request());
    hold_as("request", "request-several", &sample::request_of_several());
    hold("chunk", &sample::chunk());
    hold("trace-sample", &sample::trace_sample());
    hold("renewal-request", &sample::renewal_request());
    hold("renewal-answer", &sample::renewal_answer());
    hold_as("renewal-answer", "renewal-refused", &sample::renewal_refused());
}

#[test]
fn unknown_fields_are_ignored() {
    use serde_cbor::Value;
    let mut value: Value = serde_cbor::from_slice(&encode(&sample::summary()).unwrap()).unwrap();
    let Value::Map(map) = &mut value else {
        panic!("a summary is a map")
    };
    map.insert(
        Value::Text("from_the_future".into()),
        Value::Array(vec![Value::Integer(1)]),
    );
    let bytes = serde_cbor::to_vec(&value).unwrap();
    assert_eq!(decode::<offramp_proto::Summary>(&bytes).unwrap(), sample::summary());
}
