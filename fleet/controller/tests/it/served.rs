//! `offramp-fleet serve`, to be killed and started again.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use offramp_fleet::{Swarm, SwarmOptions};
use offramp_link::BrokerUrl;
use offramp_test_support::Process;
use serde_json::Value;

use crate::http::get;
use crate::world::{soon, tenant};

/// A controller in a process of its own.
pub(crate) struct Served {
    pub(crate) process: Process,
    port: u16,
}

impl Served {
    pub(crate) fn start(arguments: &[&str], broker: &BrokerUrl, port: u16) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offramp-fleet"));
        command
            .args(["serve", "--tenant", "greenhouse"])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--broker", &broker.to_string()])
            .args(arguments)
            .env_remove("RUST_LOG");
        let process = Process::start(&mut command);
        process.wait_for_line("page and API");
        Self { process, port }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// So many devices that send a summary every two seconds.
    pub(crate) async fn swarm(&self, broker: &BrokerUrl, devices: usize) -> Swarm {
        let options = SwarmOptions {
            broker: broker.clone(),
            tenant: tenant(),
            key: self.status().await["public_key"].as_str().unwrap().parse().unwrap(),
            devices,
            interval: Duration::from_secs(2),
        };
        let swarm = soon("the swarm", Swarm::start(&options, || ())).await.unwrap();
        swarm.send(true);
        swarm
    }

    pub(crate) async fn status(&self) -> Value {
        get(self.address(), "/api/v1/status").await.json()
    }

    /// Asks until the answer is as it should be. What is asked may die meanwhile, so there is no news to wait for.
    pub(crate) async fn ask_until(&self, path: &str, enough: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let answer = get(self.address(), path).await.json();
                if enough(&answer) {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        soon(path, wait).await
    }

    /// Looks at a rollout, which must go on, until it is as it should be.
    pub(crate) async fn until(&self, id: u64, enough: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/api/v1/rollouts/{id}");
        let enough_or_over = |rollout: &Value| enough(rollout) || rollout["state"] != "running";
        let rollout = self.ask_until(&path, enough_or_over).await;
        assert!(enough(&rollout), "{} {}", rollout["state"], rollout["reason"]);
        rollout
    }
}
