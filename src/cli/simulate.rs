//! `fanwire pub --simulate`: the quotes of a [`Market`] at a rate, until told to stop. It outlives restarts of the gateway.
//!
//! Open loop: quotes are due by the clock. When the gateway takes fewer, those more than [`BEHIND_MAX`] late are left out and
//! counted: what arrives is news.

use super::market::Market;
use crate::load::publisher::{grpc_client, with_token};
use crate::proto::v1::{PublishBatch, PublishBatchResult, PublishRequest};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt;
use std::io::IsTerminal;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// Between two looks at the clock: the most that a quote is late by itself.
const PACE: Duration = Duration::from_millis(5);
/// Quotes of one batch.
const BATCH_MESSAGES_MAX: u64 = 100;
/// Batches unanswered at a time.
const IN_FLIGHT_MAX: u64 = 32;
/// What is later than this is left out.
const BEHIND_MAX: Duration = Duration::from_millis(500);
/// For the last answers, once it is to stop.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// From the loss of a connection to the first attempt; doubled with each that fails.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What to simulate, and for whom.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) symbols: usize,
    /// Quotes a second, above 0.
    pub(super) rate: f64,
    pub(super) seed: u64,
    /// All quotes go here; without it each to `topic_prefix` with its symbol.
    pub(super) topic: Option<String>,
    pub(super) topic_prefix: String,
    /// Without it until SIGINT or SIGTERM.
    pub(super) duration: Option<Duration>,
    /// Where to publish, the next where one is lost; at least one.
    pub(super) grpc: Vec<String>,
    pub(super) token: Option<String>,
}

/// What became of the quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    accepted: u64,
    refused: u64,
    /// Left out because the gateway was behind, or away.
    left_out: u64,
    /// Sent, and the answer was lost with its connection.
    unanswered: u64,
    in_flight: u64,
    reconnects: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { accepted, refused, left_out, unanswered, reconnects, .. } = self;
        write!(
            f,
            "{accepted} accepted, {refused} refused, {left_out} left out, {unanswered} unanswered, {reconnects} reconnects"
        )
    }
}

/// Runs it to its end.
pub(super) fn run(plan: &Plan) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let stop = async {
        match plan.duration {
            Some(duration) => tokio::select! { () = signalled() => {}, () = sleep(duration) => {} },
            None => signalled().await,
        }
    };
    let result = runtime.map_err(|e| e.to_string()).and_then(|r| r.block_on(simulate(plan, stop, &mut live())));
    match result {
        Ok(tally) => {
            println!("{tally}");
            if tally.accepted > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// SIGINT or SIGTERM.
async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        }
        _ => std::future::pending().await, // They keep their default then, which ends us too.
    }
}

/// Shows each second on stderr: one line that stays in place on a terminal, plain lines in a pipe.
fn live() -> impl FnMut(&str) {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(ProgressStyle::with_template("{msg}").expect("a template of ours"));
    move |line| {
        if terminal {
            bar.set_message(line.to_owned());
            bar.tick();
        } else {
            eprintln!("{line}");
        }
    }
}

/// Why a connection to the gateway ended.
enum End {
    /// It is time.
    Stopped,
    /// Another attempt may help.
    Lost(String),
    /// None will.
    Hopeless(String),
}

impl From<Status> for End {
    fn from(status: Status) -> End {
        let reason = format!("PublishStream: {} ({:?})", status.message(), status.code());
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented => {
                End::Hopeless(reason)
            }
            _ => End::Lost(reason),
        }
    }
}

/// Publishes until `stop`.
///
/// # Errors
/// Nobody is there at the first attempt at each gateway, or one refuses us.
async fn simulate(plan: &Plan, stop: impl Future<Output = ()>, show: &mut impl FnMut(&str)) -> Result<Tally, String> {
    let mut stop = std::pin::pin!(stop);
    let mut feed = Feed::new(plan);
    let mut backoff = BACKOFF_MIN;
    for attempt in 1.. {
        let accepted = feed.tally.accepted;
        let address = &plan.grpc[(attempt - 1) % plan.grpc.len()];
        match feed.session(plan, address, stop.as_mut(), show).await {
            End::Stopped => return Ok(feed.tally),
            End::Hopeless(reason) => return Err(reason),
            End::Lost(reason) if feed.tally.accepted == 0 && attempt == plan.grpc.len() => return Err(reason),
            End::Lost(reason) => show(&format!("{reason}; again in {} ms", backoff.as_millis())),
        }
        if feed.tally.accepted > accepted {
            backoff = BACKOFF_MIN;
        }
        tokio::select! { () = sleep(backoff) => {}, () = stop.as_mut() => return Ok(feed.tally) }
        backoff = (backoff * 2).min(BACKOFF_MAX);
        feed.tally.reconnects += 1;
    }
    unreachable!("attempts don't run out")
}

/// The quotes on their way.
struct Feed {
    market: Market,
    rate: f64,
    start: Instant,
    /// Quotes made or left out since `start`.
    done: u64,
    tally: Tally,
    shown: (Instant, u64),
    text: String,
}

impl Feed {
    fn new(plan: &Plan) -> Feed {
        let start = Instant::now();
        Feed {
            market: Market::new(plan.symbols, plan.seed),
            rate: plan.rate,
            start,
            done: 0,
            tally: Tally::default(),
            shown: (start, 0),
            text: String::new(),
        }
    }

    /// One connection, from its beginning to its end.
    async fn session(
        &mut self,
        plan: &Plan,
        address: &str,
        mut stop: Pin<&mut impl Future<Output = ()>>,
        show: &mut impl FnMut(&str),
    ) -> End {
        let (to_gateway, batches) = mpsc::channel(IN_FLIGHT_MAX as usize);
        let connecting = async {
            let mut client = grpc_client(address).await.map_err(End::Lost)?;
            let request = with_token(ReceiverStream::new(batches), plan.token.as_deref()).map_err(End::Hopeless)?;
            Ok(client.publish_stream(request).await?.into_inner())
        };
        let mut answers = tokio::select! {
            connected = connecting => match connected { Ok(answers) => answers, Err(end) => return end },
            () = stop.as_mut() => return End::Stopped,
        };
        let mut sizes = std::collections::VecDeque::new(); // Messages of each batch in flight.
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let end = loop {
            tokio::select! {
                () = stop.as_mut() => break End::Stopped,
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => self.answered(&answer, &mut sizes),
                    Ok(None) => break End::Lost("the gateway ended the stream".into()),
                    Err(status) => break status.into(),
                },
                _ = pace.tick() => {
                    while let Some(batch) = self.due(plan, sizes.len() as u64) {
                        sizes.push_back(batch.messages.len() as u64);
                        // There is room for as many as may be in flight; if the stream is gone, its end comes as an answer.
                        to_gateway.try_send(batch).ok();
                    }
                    self.tally.in_flight = sizes.iter().sum();
                    self.show(show);
                }
            }
        };
        drop(to_gateway);
        if matches!(end, End::Stopped) {
            let last = async {
                while let (false, Ok(Some(answer))) = (sizes.is_empty(), answers.message().await) {
                    self.answered(&answer, &mut sizes);
                }
            };
            timeout(LAST_ANSWERS, last).await.ok(); // What is not answered then is counted as such.
        }
        self.tally.unanswered += sizes.iter().sum::<u64>();
        self.tally.in_flight = 0;
        end
    }

    /// The next batch of what is due, if there is anything and room for it.
    fn due(&mut self, plan: &Plan, batches_in_flight: u64) -> Option<PublishBatch> {
        let due = (self.start.elapsed().as_secs_f64() * self.rate) as u64;
        let behind_max = ((BEHIND_MAX.as_secs_f64() * self.rate) as u64).max(1);
        let left_out = due.saturating_sub(self.done + behind_max);
        self.done += left_out;
        self.tally.left_out += left_out;
        let messages = (due - self.done.min(due)).min(BATCH_MESSAGES_MAX);
        if messages == 0 || batches_in_flight >= IN_FLIGHT_MAX {
            return None;
        }
        self.done += messages;
        let unix_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_micros() as u64);
        let message = |_| {
            self.text.clear();
            let symbol = self.market.quote(unix_us, &mut self.text);
            let topic = plan.topic.clone().unwrap_or_else(|| format!("{}{symbol}", plan.topic_prefix));
            PublishRequest { topic, data: Bytes::copy_from_slice(self.text.as_bytes()), ..Default::default() }
        };
        Some(PublishBatch { id: 0, messages: (0..messages).map(message).collect() }) // Answered in order.
    }

    fn answered(&mut self, answer: &PublishBatchResult, sizes: &mut std::collections::VecDeque<u64>) {
        sizes.pop_front();
        let refused = answer.results.iter().filter(|r| r.error.is_some()).count() as u64;
        self.tally.refused += refused;
        self.tally.accepted += answer.results.len() as u64 - refused;
    }

    /// Once a second.
    fn show(&mut self, show: &mut impl FnMut(&str)) {
        let (at, accepted) = self.shown;
        let since = at.elapsed();
        if since >= Duration::from_secs(1) {
            let per_s = (self.tally.accepted - accepted) as f64 / since.as_secs_f64();
            let seconds = self.start.elapsed().as_secs();
            show(&format!("{seconds:>5} s  {per_s:.0}/s  {}, {} in flight", self.tally, self.tally.in_flight));
            self.shown = (Instant::now(), self.tally.accepted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::publisher::pretend;
    use std::collections::BTreeMap;

    fn plan(grpc: String) -> Plan {
        Plan {
            symbols: 5,
            rate: 2000.0,
            seed: 1,
            topic: None,
            topic_prefix: "quotes:".into(),
            duration: None,
            grpc: vec![grpc],
            token: Some("secret".into()),
        }
    }

    fn simulated(plan: &Plan, ms: u64) -> Result<Tally, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(simulate(plan, async { sleep(Duration::from_millis(ms)).await }, &mut |_| {}))
    }

    #[test]
    fn where_nobody_is_the_next_address_is_tried() {
        let (address, _) = pretend::gateway(|_| false);
        let nowhere = "127.0.0.1:1".to_owned();
        let of = |grpc| Plan { grpc, ..plan(address.clone()) };
        let tally = simulated(&of(vec![nowhere.clone(), address.clone()]), 500).unwrap();
        assert!(tally.accepted > 0 && tally.reconnects == 1, "{tally}");
        assert!(simulated(&of(vec![nowhere.clone(), nowhere]), 2000).is_err());
    }

    #[test]
    fn quotes_go_to_the_topic_of_their_symbol_in_order_and_all_are_accounted_for() {
        let (address, seen) = pretend::gateway(|_| false);
        let tally = simulated(&plan(address), 300).unwrap();
        let seen = seen.lock().unwrap();
        assert!(seen.iter().all(|batch| batch.len() as u64 <= BATCH_MESSAGES_MAX));
        let mut numbers = BTreeMap::new();
        for (topic, data) in seen.iter().flatten() {
            let quote: serde_json::Value = serde_json::from_slice(data).unwrap();
            assert_eq!(*topic, format!("quotes:{}", quote["s"].as_str().unwrap()));
            let number = numbers.entry(topic.clone()).or_insert(0);
            *number += 1;
            assert_eq!(quote["n"].as_u64(), Some(*number));
        }
        assert_eq!(tally.accepted, numbers.values().sum::<u64>());
        assert_eq!((tally.refused, tally.unanswered, tally.reconnects), (0, 0, 0));
        let due = tally.accepted + tally.left_out;
        assert!((100..=700).contains(&due), "2000/s for 0.3 s: {tally}");
    }

    #[test]
    fn all_quotes_go_to_one_topic_if_one_is_named() {
        let (address, seen) = pretend::gateway(|_| true);
        let tally = simulated(&Plan { topic: Some("all".into()), ..plan(address) }, 100).unwrap();
        assert!(tally.refused > 0 && tally.accepted == 0, "{tally}");
        assert!(seen.lock().unwrap().iter().flatten().all(|(topic, _)| topic == "all"));
    }

    #[test]
    fn nobody_there_at_first_or_a_wrong_token_ends_it() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert!(simulated(&plan(nobody.clone()), 5000).unwrap_err().contains(&nobody));
        let (address, _) = pretend::gateway(|_| false);
        let error = simulated(&Plan { token: None, ..plan(address) }, 5000).unwrap_err();
        assert!(error.contains("no token"), "{error}");
    }

    #[test]
    fn what_is_too_late_is_left_out_and_in_flight_is_bounded() {
        let plan = Plan { rate: 1_000_000.0, ..plan(String::new()) };
        let mut feed = Feed::new(&plan);
        feed.start = Instant::now() - Duration::from_secs(10);
        assert!(feed.due(&plan, IN_FLIGHT_MAX).is_none(), "no room");
        assert!((9_000_000..=9_600_000).contains(&feed.tally.left_out), "{}", feed.tally);
        let batch = feed.due(&plan, 0).unwrap();
        assert_eq!(batch.messages.len() as u64, BATCH_MESSAGES_MAX);
    }
}
