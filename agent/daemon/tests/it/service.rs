//! The agent under a service manager: what it tells systemd.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use offramp_test_support::{PATIENCE, temp_dir};

use crate::device::Device;

/// Short enough to wait for, long enough that no busy machine takes so long for a frame.
const WATCHDOG: Duration = Duration::from_secs(4);

/// What the manager is told next.
fn told(manager: &UnixDatagram) -> String {
    let mut message = [0; 4096];
    let length = manager.recv(&mut message).expect("the agent should tell");
    std::str::from_utf8(&message[..length]).unwrap().to_owned()
}

#[test]
fn a_service_manager_hears_that_the_agent_is_ready_lives_hangs_and_ends() {
    let folder = temp_dir();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let device = Device::new(folder.path(), "service", None);
    let mut agent = device.start_as_service(&socket, WATCHDOG);
    assert!(told(&manager).contains("READY=1"));
    agent.show([device.frame(0)]);
    assert_eq!(told(&manager), "WATCHDOG=1\n");

    // Nobody reads its predictions: its only worker cannot go on.
    const FRAMES: usize = 3000;
    let frames = (0..FRAMES).flat_map(|i| device.frame(i).iter().copied()).collect();
    let input = agent.flood(frames);
    let mut message = told(&manager);
    while message == "WATCHDOG=1\n" {
        message = told(&manager);
    }
    assert!(message.starts_with("STATUS=a worker has hung for "), "{message}");
    for _ in 0..FRAMES {
        agent.prediction();
    }
    let input = input.join().unwrap();
    assert_eq!(
        told(&manager),
        "WATCHDOG=1\nSTATUS=frames are served\n",
        "nothing between"
    );

    agent.terminate();
    drop(input);
    let mut message = told(&manager);
    while message == "WATCHDOG=1\n" {
        message = told(&manager);
    }
    assert_eq!(message, "STOPPING=1\n");
}
