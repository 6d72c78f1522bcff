//! A bad network between a client and a server.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use crate::PATIENCE;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// A TCP relay whose connections can be held up and cut.
///
/// Faults it injects: bytes that do not arrive (yet) in one or both directions, connections that
/// break at any moment, a server that seems not to listen. It never changes, drops or reorders
/// bytes within a connection, which TCP excludes.
#[derive(Debug)]
pub struct Network {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: [bool; 2],
    /// Connections with bytes that are held up.
    waiting: [usize; 2],
    connections: Vec<[TcpStream; 2]>,
    accepted: usize,
    cuts: usize,
    down: bool,
    closed: bool,
}

impl Network {
    /// Starts relaying to `server`.
    ///
    /// # Panics
    /// If no port is free.
    pub fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port should be free");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            server,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if !accepting.relay(client) {
                    break;
                }
            }
        });
        Self { address, shared }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nothing more arrive in this direction, on all connections, until [`Network::release`].
    pub fn hold(&self, direction: Direction) {
        self.shared.state().held[direction as usize] = true;
    }

    /// Lets everything that was held up go on.
    pub fn release(&self, direction: Direction) {
        self.shared.state().held[direction as usize] = false;
        self.shared.changed.notify_all();
    }

    /// Waits until bytes are held up in this direction.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    pub fn wait_until_held(&self, direction: Direction) {
        let state = self.shared.state();
        let nothing = |state: &mut State| state.waiting[direction as usize] == 0;
        let (state, late) = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, nothing)
            .expect("not poisoned");
        drop(state);
        assert!(!late.timed_out(), "something should have been sent");
    }

    /// Breaks all connections. New ones are relayed.
    pub fn cut(&self) {
        self.shared.state().cut();
        self.shared.changed.notify_all();
    }

    /// Breaks all connections, and every new one at once, until [`Network::restore`].
    pub fn take_down(&self) {
        let mut state = self.shared.state();
        state.down = true;
        state.cut();
        self.shared.changed.notify_all();
    }

    /// Ends what [`Network::take_down`] began.
    pub fn restore(&self) {
        self.shared.state().down = false;
    }

    /// Connections made by clients so far, those included that were broken at once.
    pub fn accepted(&self) -> usize {
        self.shared.state().accepted
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.closed = true;
            state.cut();
        }
        self.shared.changed.notify_all();
        // Wakes the thread that accepts, so that it sees the end.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn cut(&mut self) {
        self.cuts += 1;
        for stream in self.connections.drain(..).flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Relays one connection in threads of its own. Returns false at the end.
    fn relay(self: &Arc<Self>, client: TcpStream) -> bool {
        let cuts = {
            let mut state = self.state();
            if state.closed {
                return false;
            }
            state.accepted += 1;
            if state.down {
                return true;
            }
            state.cuts
        };
        let Ok(server) = TcpStream::connect(self.server) else {
            return true;
        };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let copy = |stream: &TcpStream| stream.try_clone().expect("a socket should be cloned");
        {
            let mut state = self.state();
            if state.cuts != cuts {
                // Cut between the client's connecting and the server's.
                return true;
            }
            state.connections.push([copy(&client), copy(&server)]);
        }
        for (direction, from, to) in [
            (Direction::Up, copy(&client), copy(&server)),
            (Direction::Down, server, client),
        ] {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.pump(direction, from, to));
        }
        true
    }

    fn pump(&self, direction: Direction, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count) = from.read(&mut buffer)
            && count > 0
        {
            let mut state = self.state();
            if state.held[direction as usize] {
                state.waiting[direction as usize] += 1;
                self.changed.notify_all();
                while state.held[direction as usize] && !state.closed {
                    state = self.changed.wait(state).expect("not poisoned");
                }
                state.waiting[direction as usize] -= 1;
            }
            drop(state);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // Bytes that were written arrive before the end does.
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }
}

#[cfg(test)]
mod tests {
    use super::{Direction, Network};
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (Network, TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let network = Network::to(listener.local_addr().unwrap());
        let client = TcpStream::connect(network.address()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (network, client, server)
    }

    fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn bytes_pass_both_ways_and_so_does_the_end() {
        let (_network, mut client, mut server) = pair();
        client.write_all(b"ping").unwrap();
        assert_eq!(read(&mut server, 4), b"ping");
        server.write_all(b"pong").unwrap();
        assert_eq!(read(&mut client, 4), b"pong");
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_is_held_arrives_when_released() {
        let (network, mut client, mut server) = pair();
        network.hold(Direction::Down);
        server.write_all(b"later").unwrap();
        client.write_all(b"now").unwrap();
        assert_eq!(read(&mut server, 3), b"now");
        network.wait_until_held(Direction::Down);
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        client.set_nonblocking(false).unwrap();
        network.release(Direction::Down);
        assert_eq!(read(&mut client, 5), b"later");
    }

    #[test]
    fn a_cut_ends_both_sides_and_not_the_next_connection() {
        let (network, mut client, mut server) = pair();
        network.take_down();
        assert_eq!(server.read(&mut [0]).unwrap_or(0), 0);
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
        let mut refused = TcpStream::connect(network.address()).unwrap();
        assert_eq!(refused.read(&mut [0]).unwrap_or(0), 0);
        assert_eq!(network.accepted(), 2);
    }
}
