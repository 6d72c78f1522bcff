//! How a controller starts when something is missing.

use std::error::Error as _;

use offramp_fleet::{Controller, Database, Options, StartError};
use offramp_link::State;

use crate::http::get;
use crate::world::{soon, tenant};

fn options() -> Options {
    // Nobody listens on port 1.
    Options::temporary("mqtt://127.0.0.1:1".parse().unwrap(), tenant())
}

#[tokio::test]
async fn controller_without_a_broker_serves_its_page_and_says_why() {
    let controller = Controller::start(options()).await.unwrap();
    let lost = |state: &State| matches!(state, State::Disconnected { .. });
    soon("the failure", controller.link().wait_for(lost)).await.unwrap();
    let status = get(controller.address(), "/api/v1/status").await.json();
    assert_eq!(status["broker"]["connected"], false);
    assert!(
        status["broker"]["reason"]
            .as_str()
            .unwrap()
            .contains("cannot be reached")
    );
    let page = get(controller.address(), "/").await;
    assert!(page.body.contains("No connection to mqtt://127.0.0.1:1"));
    soon("the end", controller.shutdown()).await;
}

#[tokio::test]
async fn taken_address_is_named() {
    let first = Controller::start(options()).await.unwrap();
    let taken = Options {
        listen: first.address(),
        ..options()
    };
    let error = Controller::start(taken).await.err().unwrap();
    assert!(
        matches!(&error, StartError::Listen { address, .. } if *address == first.address()),
        "{error}"
    );
    assert!(error.source().is_some());
    first.shutdown().await;
}

#[tokio::test]
async fn database_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let shared = || Options {
        database: Database::File(folder.path().join("fleet.db")),
        ..options()
    };
    let first = Controller::start(shared()).await.unwrap();
    let error = Controller::start(shared()).await.err().unwrap();
    assert!(error.to_string().contains("used by another controller"), "{error}");
    first.shutdown().await;
    Controller::start(shared()).await.unwrap().shutdown().await;
}
