//! Heads are kept per context, and found again.

use offramp::package;
use offramp_core::{Core, Settings};
use offramp_test_support::temp_dir;

use crate::device::Device;

/// Contexts in the latest checkpoint of a device.
fn remembered(device: &Device) -> u64 {
    let package = package::open(package::EMBEDDED).unwrap();
    let mut core = Core::new(package::network(&package).unwrap(), Settings::default()).unwrap();
    core.restore(&device.store().checkpoints("").unwrap()[0].heads).unwrap();
    core.close_window().guard.contexts
}

#[test]
fn a_context_named_in_a_file_gets_heads_of_its_own_and_finds_them_again() {
    let folder = temp_dir();
    let device = Device::new(folder.path(), "contexts", None);
    device.configure("[context]\nfile = \"context\"\n");
    // The one that every core starts with is the first.
    for (context, expected) in [("", 1), ("day", 2), ("night", 3), ("day", 3)] {
        std::fs::write(folder.path().join("context"), context).unwrap();
        let mut agent = device.start();
        agent.show((0..20).map(|i| device.frame(i)));
        agent.end();
        assert_eq!(remembered(&device), expected, "after {context:?}");
    }
    let mut agent = device.start_with(&["--forget"]);
    agent.show([device.frame(0)]);
    agent.end();
    assert_eq!(remembered(&device), 2, "what was learned before is forgotten");
}
