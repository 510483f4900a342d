//! Publishers that number what they send, know what was acknowledged, and go on elsewhere when a node leaves.

use crate::background::Background;
use crate::fleet::{Door, TOPIC};
use crate::lab::Place;
use crate::publisher::message;
use crate::record::{Life, Record};
use fanwire::proto::v1::publisher_client::PublisherClient;
use fanwire::proto::v1::{PublishBatch, PublishBatchResult};
use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

/// Between two batches of a publisher, and how many messages one has.
const PACE: Duration = Duration::from_millis(25);
const BATCH: usize = 2;
/// For a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// For an answer; without it nobody knows what became of the batch.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Publishers at work until told to stop.
pub struct Load {
    stop: watch::Sender<bool>,
    done: mpsc::Receiver<()>,
    backgrounds: Vec<Background>,
}

impl Load {
    /// One publisher on each node, by its loopback, and `roaming` ones at `outside`, which reach every node by the network.
    pub fn begin(record: &Arc<Mutex<Record>>, doors: &[Door], outside: &Place, roaming: usize) -> Load {
        let (stop, stopped) = watch::channel(false);
        let (working, done) = mpsc::channel(1);
        let mut backgrounds = Vec::new();
        let mut begin = |place: &Place, doors: Vec<Door>, at: usize| {
            let background = Background::within(place);
            let publisher = Publisher {
                number: record.lock().unwrap().add_publisher(),
                doors,
                at,
                again: VecDeque::new(),
                record: record.clone(),
                stop: stopped.clone(),
            };
            let working = working.clone();
            background.spawn(async move {
                publisher.run().await;
                drop(working);
            });
            backgrounds.push(background);
        };
        doors.iter().for_each(|door| begin(&door.place, vec![door.local()], 0));
        (0..roaming).for_each(|at| begin(outside, doors.to_vec(), at));
        Load { stop, done, backgrounds }
    }

    /// Stops when every batch under way is answered or given up.
    pub fn stop(mut self) {
        self.stop.send_replace(true);
        self.backgrounds[0].run(async move { self.done.recv().await });
    }
}

struct Publisher {
    number: usize,
    doors: Vec<Door>,
    at: usize,
    /// Given to nobody: the node said so.
    again: VecDeque<u64>,
    record: Arc<Mutex<Record>>,
    stop: watch::Receiver<bool>,
}

impl Publisher {
    async fn run(mut self) {
        while !self.may_end() {
            let door = self.doors[self.at % self.doors.len()].clone();
            if door.is_open() {
                // However it ends: what was accepted is in the record.
                let _ = self.publish(&door).await;
            }
            self.at += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn may_end(&self) -> bool {
        *self.stop.borrow() && self.again.is_empty()
    }

    /// Publishes to one node for as long as it takes what comes.
    async fn publish(&mut self, door: &Door) -> Result<(), Box<dyn Error + Send + Sync>> {
        let life = door.life();
        let endpoint = Endpoint::from_shared(format!("http://{}", SocketAddr::from((door.address, door.grpc_port))))?;
        let channel = timeout(CONNECT, endpoint.connect_timeout(CONNECT).connect()).await??;
        let (batches, receiver) = mpsc::channel(1);
        let mut client = PublisherClient::new(channel);
        let opened = client.publish_stream(ReceiverStream::new(receiver));
        let mut results = timeout(CONNECT, opened).await??.into_inner();
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.may_end() {
            pace.tick().await;
            let numbers = self.next(life);
            let text = |number: &u64| format!("{} {number} {}", self.number, life.0);
            let messages = numbers.iter().map(|number| message(TOPIC, text(number))).collect();
            let answer = async {
                let sent = batches.send(PublishBatch { messages, id: 0 }).await;
                sent.map_err(|_| Status::unavailable("the stream is over"))?;
                results.message().await?.ok_or_else(|| Status::unavailable("the stream is over"))
            };
            match timeout(ANSWER, answer).await? {
                Ok(result) => self.note(&numbers, result),
                Err(status) => {
                    // Only what the gateway itself did not take was given to nobody; what is lost with a connection may have been delivered.
                    if status.code() == Code::Unavailable && status.source().is_none() {
                        self.again.extend(numbers);
                    }
                    return Err(status.into());
                }
            }
        }
        Ok(())
    }

    /// The numbers of the next batch, written down as sent.
    fn next(&mut self, life: Life) -> Vec<u64> {
        let mut record = self.record.lock().unwrap();
        if self.again.is_empty() {
            return (0..BATCH).map(|_| record.send(self.number, life)).collect();
        }
        let numbers: Vec<_> = self.again.drain(..self.again.len().min(BATCH)).collect();
        numbers.iter().for_each(|number| record.send_again(self.number, *number, life));
        numbers
    }

    fn note(&mut self, numbers: &[u64], result: PublishBatchResult) {
        let mut record = self.record.lock().unwrap();
        for (number, result) in numbers.iter().zip(result.results) {
            match result.error {
                None => record.accept(self.number, *number),
                // It may be in the stream, or come to be: once more would be twice.
                Some(error) if Code::from(error.code) == Code::DeadlineExceeded => {}
                Some(_) => self.again.push_back(*number),
            }
        }
    }
}
