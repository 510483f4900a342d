//! A network that fails when told to: a TCP proxy between whoever connects to it and an address behind it.
//!
//! ```text
//!                 ┌─ Pass ───── bytes go on, after `delay`, some of them later (loss), and no more than the rate allows
//! client ─► proxy ┼─ Silent ─── bytes stay where they are, nobody is told (half-open); on Pass they go on
//!                 └─ Cut ────── every connection is reset, new ones are too
//! ```

use crate::background::Background;
use crate::lab::Place;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Chunks of one direction on their way; more wait in the kernel's buffers.
const CHUNKS_MAX: usize = 256;
const CHUNK_BYTES: usize = 16 << 10;
/// What TCP waits at least before it sends again.
const SENT_AGAIN: Duration = Duration::from_millis(200);

/// What the network does.
#[derive(Clone, Copy)]
struct Network {
    is_silent: bool,
    is_cut: bool,
    /// Cuts so far, so that one that is over before anybody looks is a cut all the same.
    cuts: u64,
    delay: Duration,
    /// Of a hundred chunks, how many are lost at first.
    lost_percent: u8,
    /// How much gets through, if not as much as comes.
    bytes_per_s: Option<u32>,
}

/// The proxy. Ends when dropped.
pub struct Faults {
    /// Where to connect.
    pub address: SocketAddr,
    behind: Arc<Mutex<Option<SocketAddr>>>,
    network: watch::Sender<Network>,
    _background: Background,
}

impl Faults {
    /// In front of nothing yet: connections are reset until there is something.
    pub fn new() -> Faults {
        Faults::listening(Background::new(), ([127, 0, 0, 1], 0).into())
    }

    /// The same at an address of a network.
    pub fn within(place: &Place, port: u16) -> Faults {
        Faults::listening(Background::within(place), (place.address, port).into())
    }

    fn listening(background: Background, address: SocketAddr) -> Faults {
        let listener = background.run(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let behind = Arc::new(Mutex::new(None));
        let (delay, lost_percent, bytes_per_s) = (Duration::ZERO, 0, None);
        let network = Network { is_silent: false, is_cut: false, cuts: 0, delay, lost_percent, bytes_per_s };
        let (network, watched) = watch::channel(network);
        background.spawn(accept(listener, behind.clone(), watched));
        Faults { address, behind, network, _background: background }
    }

    /// Puts it in front of `address`.
    pub fn lead_to(&self, address: SocketAddr) {
        *self.behind.lock().unwrap() = Some(address);
    }

    /// What it is in front of.
    pub fn behind(&self) -> SocketAddr {
        self.behind.lock().unwrap().expect("it leads somewhere")
    }

    /// All goes on.
    pub fn pass(&self) {
        self.network.send_modify(|network| (network.is_silent, network.is_cut) = (false, false));
    }

    /// Nothing gets through and nobody is told, as with a pulled cable.
    pub fn fall_silent(&self) {
        self.network.send_modify(|network| network.is_silent = true);
    }

    /// Resets every connection now, and each new one, until told otherwise.
    pub fn cut(&self) {
        self.network.send_modify(|network| {
            network.is_cut = true;
            network.cuts += 1;
        });
    }

    /// Resets every connection now; new ones pass.
    pub fn reset(&self) {
        self.network.send_modify(|network| network.cuts += 1);
    }

    /// Of a hundred chunks so many are lost: TCP sends them again, and what is behind them waits.
    pub fn lose(&self, percent: u8) {
        self.network.send_modify(|network| network.lost_percent = percent);
    }

    /// So many bytes a second and no more, in each direction of each connection; what waits for its turn is in here, as in a modem.
    pub fn throttle(&self, bytes_per_s: u32) {
        self.network.send_modify(|network| network.bytes_per_s = Some(bytes_per_s));
    }

    /// Each byte arrives that much later, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.network.send_modify(|network| network.delay = delay);
    }
}

async fn accept(listener: TcpListener, behind: Arc<Mutex<Option<SocketAddr>>>, network: watch::Receiver<Network>) {
    while let Ok((client, _)) = listener.accept().await {
        let (behind, network) = (*behind.lock().unwrap(), network.clone());
        tokio::spawn(async move {
            let server = match behind {
                Some(address) if !network.borrow().is_cut => TcpStream::connect(address).await.ok(),
                _ => None,
            };
            match server {
                Some(server) => connection(client, server, network).await,
                None => client.set_zero_linger().unwrap(), // Closed with a reset.
            }
        });
    }
}

async fn connection(mut client: TcpStream, mut server: TcpStream, mut network: watch::Receiver<Network>) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let cuts = network.borrow().cuts;
    let is_cut = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let there = direction(from_client, to_server, network.clone());
        let back = direction(from_server, to_client, network.clone());
        tokio::select! {
            _ = network.wait_for(|network| network.is_cut || network.cuts != cuts) => true,
            _ = async { tokio::join!(there, back) } => false,
        }
    };
    if is_cut {
        for stream in [&client, &server] {
            stream.set_zero_linger().unwrap();
        }
    }
}

/// Carries bytes one way, until the end of either side.
async fn direction(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut network: watch::Receiver<Network>) {
    let (chunks, mut queue) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let delays = network.clone();
    let read = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut dice = 0u64;
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let Network { delay, lost_percent, .. } = *delays.borrow();
            // Knuth's multiplier: evenly spread, and the same in every run.
            dice = dice.wrapping_add(1).wrapping_mul(6_364_136_223_846_793_005);
            let is_lost = dice >> 33 & 0xff < u64::from(lost_percent) * 256 / 100;
            let due = Instant::now() + delay + if is_lost { SENT_AGAIN } else { Duration::ZERO };
            if chunks.send((due, buffer[..read].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = queue.recv().await {
            tokio::time::sleep_until(due).await;
            drop(network.wait_for(|network| !network.is_silent).await);
            let bytes_per_s = network.borrow().bytes_per_s;
            for bytes in bytes.chunks(if bytes_per_s.is_some() { 1024 } else { CHUNK_BYTES }) {
                if let Some(bytes_per_s) = bytes_per_s {
                    let time = Duration::from_secs(1).mul_f64(bytes.len() as f64 / f64::from(bytes_per_s));
                    tokio::time::sleep(time).await; // A millisecond at least.
                }
                if to.write_all(bytes).await.is_err() {
                    return;
                }
            }
        }
        // The end is told in its turn.
        drop(network.wait_for(|network| !network.is_silent).await);
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
