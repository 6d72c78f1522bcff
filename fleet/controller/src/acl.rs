//! What a broker must know: who may read and write which topics.
//!
//! Devices write below `…/DEVICE/up/` and read below `…/DEVICE/down/` of their own name, which the broker takes from the
//! common name of their certificate; the controller reads and writes the other side of each. Nobody else may do anything.

use std::fmt::Write as _;
use std::path::Path;

use offramp_proto::{PROTOCOL_VERSION, TenantId};

use crate::authority::CONTROLLER;

/// Rules for mosquitto: the file of its option `acl_file`.
pub fn mosquitto(tenant: &TenantId) -> String {
    let root = format!("offramp/{PROTOCOL_VERSION}/{tenant}");
    format!(
        "# Who may read and write which topics of fleet `{tenant}`. A user is the common name of a certificate.\n\
         user {CONTROLLER}\n\
         topic read {root}/+/up/#\n\
         topic write {root}/+/down/#\n\
         \n\
         pattern write {root}/%u/up/#\n\
         pattern read {root}/%u/down/#\n"
    )
}

/// Rules for EMQX 5: its file `acl.conf`.
pub fn emqx(tenant: &TenantId) -> String {
    let root = format!("offramp/{PROTOCOL_VERSION}/{tenant}");
    let mut text = format!(
        "%% Who may read and write which topics of fleet `{tenant}`. A user is the common name of a certificate:\n\
         %% set `peer_cert_as_username = cn` at the listener, and `authorization.no_match = deny`.\n"
    );
    let user = format!("{{username, \"{CONTROLLER}\"}}");
    let rules = [
        (user.as_str(), "subscribe", format!("{root}/+/up/#")),
        (user.as_str(), "publish", format!("{root}/+/down/#")),
        ("all", "publish", format!("{root}/${{username}}/up/#")),
        ("all", "subscribe", format!("{root}/${{username}}/down/#")),
    ];
    for (who, action, topic) in rules {
        writeln!(text, "{{allow, {who}, {action}, [\"{topic}\"]}}.").expect("a text takes all that is written");
    }
    text.push_str("{deny, all}.\n");
    text
}

/// What mosquitto must read before any listener, once for all fleets: the first file of its `conf.d`.
pub const MOSQUITTO_FIRST: &str = "# Each listener has its own rules.\n\
per_listener_settings true\n\
# What waits for a controller that is away; 0 for no limit but memory and disk.\n\
max_queued_messages 0\n\
# What may be on its way to the controller at a time: two batches of its database. The default is 20.\n\
max_inflight_messages 1000\n";

/// A listener of mosquitto for one fleet, with the files in a folder, for its `conf.d`.
pub fn mosquitto_listener(port: u16, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "# A listener for one fleet: only devices with a certificate of its authority may connect.\n\
         listener {port}\n\
         cafile {folder}/ca.pem\n\
         certfile {folder}/broker.pem\n\
         keyfile {folder}/broker.key\n\
         crlfile {folder}/crl.pem\n\
         require_certificate true\n\
         use_identity_as_username true\n\
         acl_file {folder}/acl\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_the_fleet_and_nothing_beyond_it() {
        let tenant = TenantId::new("greenhouse").unwrap();
        let rules = emqx(&tenant);
        assert!(rules.contains("{allow, all, publish, [\"offramp/1/greenhouse/${username}/up/#\"]}."));
        assert!(
            rules
                .contains("{allow, {username, \"offramp-controller\"}, subscribe, [\"offramp/1/greenhouse/+/up/#\"]}.")
        );
        assert!(rules.ends_with("{deny, all}.\n"));
        for line in mosquitto(&tenant)
            .lines()
            .filter(|line| line.starts_with("topic") || line.starts_with("pattern"))
        {
            assert!(line.contains(" offramp/1/greenhouse/"), "{line}");
        }
    }
}
