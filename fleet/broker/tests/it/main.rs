//! Starting and stopping the embedded broker. How it behaves towards clients is tested where the
//! link is.

use std::net::{SocketAddr, TcpListener};

use offramp_broker::{Broker, BrokerError, Persistence};
use tokio::net::TcpStream;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

#[tokio::test]
async fn it_listens_where_it_says_until_it_is_shut_down() {
    let broker = Broker::start(ANY_PORT, Persistence::Memory).await.unwrap();
    let address = broker.address();
    assert_ne!(address.port(), 0);
    TcpStream::connect(address).await.unwrap();

    broker.shutdown().await.unwrap();
    TcpStream::connect(address).await.unwrap_err();
    let again = Broker::start(address, Persistence::Memory).await.unwrap();
    assert_eq!(again.address(), address);
}

#[tokio::test]
async fn a_busy_port_is_an_error() {
    let other = TcpListener::bind(ANY_PORT).unwrap();
    let address = other.local_addr().unwrap();
    let error = Broker::start(address, Persistence::Memory).await.unwrap_err();
    assert!(matches!(&error, BrokerError::Bind { address: busy, source }
        if *busy == address && source.kind() == std::io::ErrorKind::AddrInUse));
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_directory_belongs_to_one_broker() {
    let directory = tempfile::tempdir().unwrap();
    let persistence = || Persistence::Directory(directory.path().join("broker"));
    let first = Broker::start(ANY_PORT, persistence()).await.unwrap();
    let error = Broker::start(ANY_PORT, persistence()).await.unwrap_err();
    assert!(matches!(error, BrokerError::Start(_)), "{error}");

    first.shutdown().await.unwrap();
    Broker::start(ANY_PORT, persistence()).await.unwrap();
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Broker::start(ANY_PORT, Persistence::Directory(file.join("broker")))
        .await
        .unwrap_err();
    assert!(matches!(error, BrokerError::Start(_)), "{error}");
}
