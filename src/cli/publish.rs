//! `fanwire pub`: arguments, lines or a file → one `PublishStream`. With `--simulate`, a market of quotes.

use super::market::SYMBOLS_MAX;
use super::simulate::{self, Plan};
use crate::load::publisher::{grpc_client, with_token};
use crate::proto::v1::publisher_client::PublisherClient;
use crate::proto::v1::{PublishBatch, PublishError, PublishRequest, PublishResult};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Messages of one batch.
const BATCH_MESSAGES_MAX: usize = 100;
/// Bytes of one batch, unless its first message alone is larger.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Messages read ahead of the gateway.
const AHEAD_MAX: usize = 1600;
/// Batches under way without an answer.
const UNANSWERED_MAX: usize = 64;
/// Refusals told one by one; the others are only counted.
const REFUSALS_TOLD_MAX: u64 = 10;

/// Quotes a second unless `--rate` says otherwise.
const SIMULATED_RATE: f64 = 1000.0;

const EXIT_CODES: &str = "\
One message to three topics, to one user, and a market of 500 symbols, topics quotes:S000 to quotes:S499:
  fanwire pub --topic a --topic b --topic c 'good morning'
  fanwire pub orders 'your order is filled' --uid 123456
  fanwire pub --simulate 500 --rate 5000

Exit codes:
  0  everything was accepted; --simulate: it was told to stop, by --duration, SIGINT or SIGTERM
  1  something was refused, or no gateway can be reached
  2  wrong arguments";

/// Each accepted message is in the queue of every shard that has subscribers of the topic.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Args {
    /// Where to publish; left out with --topic and --all
    #[arg(required_unless_present_any = ["all", "topics", "simulate"])]
    topic: Option<String>,
    /// The message, or - for one message from each line of stdin
    data: Option<String>,
    /// To every client, subscribed to anything or not
    #[arg(long, visible_alias = "everyone", conflicts_with_all = ["topics", "uid"])]
    all: bool,
    /// One of several topics, in place of TOPIC: one publication for each, in one call; repeatable
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<String>,
    /// Only to connections logged in as this user that subscribed to the topic
    #[arg(long, value_name = "UID")]
    uid: Option<String>,
    /// One message from each line of this file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// At most so many messages a second; quotes of --simulate, which has 1,000 without it
    #[arg(long, value_name = "MESSAGES/S")]
    rate: Option<f64>,
    /// The quotes of a market of so many symbols, each to a topic of its own; all to TOPIC if there is one
    #[arg(long, value_name = "SYMBOLS", conflicts_with_all = ["data", "all", "topics", "uid", "file"])]
    simulate: Option<usize>,
    /// Topics of --simulate: this and the symbol
    #[arg(long, value_name = "TEXT", default_value = "quotes:", requires = "simulate")]
    topic_prefix: String,
    /// One seed, one market
    #[arg(long, value_name = "N", default_value_t = 1, requires = "simulate")]
    seed: u64,
    /// End --simulate after so many seconds
    #[arg(long, value_name = "S", requires = "simulate")]
    duration: Option<f64>,
    /// The gateway's gRPC interface; several, separated by commas, are gone to in turn where one can't be reached or shuts down
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10067", value_delimiter = ',')]
    grpc: Vec<String>,
    /// Bearer token
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
}

/// Whom messages are for.
#[derive(Clone, Debug, Default, PartialEq)]
struct To {
    /// Empty: everyone, or `topics`.
    topic: String,
    topics: Vec<String>,
    uid: String,
}

impl To {
    fn request(&self, data: Bytes) -> PublishRequest {
        PublishRequest { topic: self.topic.clone(), data, uid: self.uid.clone(), topics: self.topics.clone() }
    }

    /// Publications that one message becomes.
    fn publications(&self) -> usize {
        self.topics.len().max(1)
    }
}

/// Where messages come from.
#[derive(Debug, PartialEq)]
enum Source {
    Argument(String),
    Stdin,
    File(PathBuf),
}

/// Runs it.
pub fn run(args: Args) -> ExitCode {
    let (to, source) = match args.what() {
        Ok(What::Messages(to, source)) => (to, source),
        Ok(What::Market(plan)) => return simulate::run(&plan),
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(2);
        }
    };
    let lines: Box<dyn Iterator<Item = io::Result<Vec<u8>>> + Send> = match source {
        Source::Argument(data) => Box::new(std::iter::once(Ok(data.into_bytes()))),
        Source::Stdin => Box::new(BufReader::new(io::stdin()).split(b'\n')),
        Source::File(path) => match File::open(&path) {
            Ok(file) => Box::new(BufReader::new(file).split(b'\n')),
            Err(e) => {
                eprintln!("{}: {e}", path.display());
                return ExitCode::FAILURE;
            }
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(|e| e.to_string()).and_then(|r| r.block_on(publish(&args, to, lines)));
    match result {
        Ok((accepted, refused)) => {
            println!("{accepted} accepted, {refused} refused");
            if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// What the arguments ask for.
#[derive(Debug)]
enum What {
    Messages(To, Source),
    Market(Plan),
}

impl Args {
    /// What to do, or what is wrong with the arguments.
    fn what(&self) -> Result<What, String> {
        let is_positive = |n: f64| n > 0.0 && n.is_finite();
        if !self.rate.is_none_or(is_positive) {
            return Err("--rate: messages a second, above 0".into());
        }
        if let Some(symbols) = self.simulate {
            if !(1..=SYMBOLS_MAX).contains(&symbols) {
                return Err(format!("--simulate: 1 to {SYMBOLS_MAX} symbols"));
            }
            // Beyond that a duration is no number of seconds that a clock has.
            if !self.duration.is_none_or(|s| is_positive(s) && s < 1e9) {
                return Err("--duration: seconds, above 0".into());
            }
            return Ok(What::Market(Plan {
                symbols,
                rate: self.rate.unwrap_or(SIMULATED_RATE),
                seed: self.seed,
                topic: self.topic.clone().filter(|topic| !topic.is_empty()),
                topic_prefix: self.topic_prefix.clone(),
                duration: self.duration.map(Duration::from_secs_f64),
                grpc: self.grpc.clone(),
                token: self.token.clone(),
            }));
        }
        // clap lets this pass: what --simulate conflicts with does away with the need for it.
        if self.duration.is_some() {
            return Err("--duration goes with --simulate".into());
        }
        if self.topics.iter().any(String::is_empty) || self.uid.as_deref() == Some("") {
            return Err("--topic and --uid: a name".into());
        }
        let uid = self.uid.clone().unwrap_or_default();
        let (to, data) = match (self.all, &self.topics[..], &self.topic, &self.data) {
            (true, _, data, None) => (To::default(), data.clone()),
            (true, _, _, Some(_)) => return Err("--all takes the place of TOPIC: give one of them".into()),
            (_, [topic], data, None) => (To { topic: topic.clone(), uid, ..To::default() }, data.clone()),
            (_, [_, ..], data, None) => (To { topics: self.topics.clone(), uid, ..To::default() }, data.clone()),
            (_, [_, ..], _, Some(_)) => return Err("--topic takes the place of TOPIC: give one of them".into()),
            (_, [], Some(topic), data) if !topic.is_empty() => {
                (To { topic: topic.clone(), uid, ..To::default() }, data.clone())
            }
            _ => return Err("an empty TOPIC would reach everyone: say --all for that".into()),
        };
        let source = match (data, &self.file) {
            (None, Some(file)) => Source::File(file.clone()),
            (Some(_), Some(_)) => return Err("DATA and --file: give one of them".into()),
            (Some(data), None) if data == "-" => Source::Stdin,
            (Some(data), None) => Source::Argument(data),
            (None, None) => return Err("no message: give DATA, - for stdin, or --file".into()),
        };
        Ok(What::Messages(to, source))
    }
}

type Lines = Box<dyn Iterator<Item = io::Result<Vec<u8>>> + Send>;

/// Publishes all lines; how many publications were accepted and refused.
async fn publish(args: &Args, to: To, lines: Lines) -> Result<(u64, u64), String> {
    let (message, mut messages) = mpsc::channel(AHEAD_MAX);
    let gap = args.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let publications = to.publications();
    // Before the first line is read: where nobody is, nothing is taken from stdin.
    let mut gateways = Gateways::new(args);
    let mut client = gateways.next().await?;
    let reader = thread::spawn(move || read(lines, gap, &message));
    let mut sent = Sent { to, accepted: 0, refused: 0, unanswered: VecDeque::new() };
    loop {
        let request = |requests| with_token(ReceiverStream::new(requests), args.token.as_deref());
        let answered = sent.answered();
        let Err(status) = sent.stream(&mut client, request, &mut messages).await? else { break };
        let failed = format!("PublishStream: {} ({:?})", status.message(), status.code());
        // Only what the gateway itself did not take was given to nobody; what is lost with a connection may have been delivered.
        let is_told = std::error::Error::source(&status).is_none();
        if status.code() != tonic::Code::Unavailable || !is_told || args.grpc.len() < 2 {
            return Err(failed);
        }
        if sent.answered() > answered {
            gateways.failures = 0;
        }
        eprintln!("{failed}; going on with another gateway");
        client = gateways.next().await?;
    }
    drop(messages); // The reader may still have some that nobody will send.
    let read = reader.join().map_err(|_| "reading the messages panicked")?.map_err(|e| format!("reading: {e}"))?;
    match read * publications as u64 - sent.answered() {
        0 => Ok((sent.accepted, sent.refused)),
        unanswered => Err(format!("the gateway ended the stream with {unanswered} messages unanswered")),
    }
}

/// Where to publish, one after the other.
struct Gateways<'a> {
    addresses: &'a [String],
    nth: usize,
    /// In a row.
    failures: usize,
}

impl Gateways<'_> {
    fn new(args: &Args) -> Gateways<'_> {
        Gateways { addresses: &args.grpc, nth: 0, failures: 0 }
    }

    /// The next that can be reached; each is tried once until one of them has answered.
    async fn next(&mut self) -> Result<PublisherClient<Channel>, String> {
        loop {
            let address = &self.addresses[self.nth % self.addresses.len()];
            self.nth += 1;
            self.failures += 1;
            if self.failures > self.addresses.len() {
                return Err("no other gateway takes it".into());
            }
            match grpc_client(address).await {
                Ok(client) => return Ok(client),
                Err(error) if self.failures == self.addresses.len() => return Err(error),
                Err(error) => eprintln!("{error}; going on with another gateway"),
            }
        }
    }
}

/// What was sent, and what became of it.
struct Sent {
    to: To,
    accepted: u64,
    refused: u64,
    /// Batches without an answer yet, in their order.
    unanswered: VecDeque<Vec<Bytes>>,
}

impl Sent {
    /// Publications with an answer.
    fn answered(&self) -> u64 {
        self.accepted + self.refused
    }

    /// Sends what is unanswered, and then what comes, by one stream to its end; `Err` is how the gateway ended it before.
    async fn stream(
        &mut self,
        client: &mut PublisherClient<Channel>,
        request: impl FnOnce(mpsc::Receiver<PublishBatch>) -> Result<Request<ReceiverStream<PublishBatch>>, String>,
        messages: &mut mpsc::Receiver<Bytes>,
    ) -> Result<Result<(), Status>, String> {
        // A message to several topics counts once for each.
        let batch_messages_max = (BATCH_MESSAGES_MAX / self.to.publications()).max(1);
        // Room for all that may be unanswered, so that sending never waits.
        let (requests, receiver) = mpsc::channel(UNANSWERED_MAX + batch_messages_max);
        for batch in &self.unanswered {
            requests.try_send(self.request(batch)).expect("there is room for all that may be unanswered");
        }
        let mut answers = match client.publish_stream(request(receiver)?).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        let mut requests = Some(requests);
        let mut read = Vec::new();
        loop {
            let may_send = requests.is_some() && self.unanswered.len() < UNANSWERED_MAX;
            tokio::select! {
                // What has been read when the batch before is on its way: a line typed by hand waits for no other.
                count = messages.recv_many(&mut read, batch_messages_max), if may_send => {
                    if count == 0 {
                        requests = None;
                    }
                    for batch in batches(read.drain(..)) {
                        if let Some(requests) = &requests {
                            // An error: the stream is over, which is told by its other half.
                            let _ = requests.try_send(self.request(&batch));
                        }
                        self.unanswered.push_back(batch);
                    }
                }
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        self.unanswered.pop_front();
                        self.count(answer.results);
                    }
                    Ok(None) => return Ok(Ok(())),
                    Err(status) => return Ok(Err(status)),
                },
            }
        }
    }

    fn request(&self, messages: &[Bytes]) -> PublishBatch {
        // Batches are answered in order, so that they need no number.
        PublishBatch { id: 0, messages: messages.iter().map(|data| self.to.request(data.clone())).collect() }
    }

    fn count(&mut self, results: Vec<PublishResult>) {
        let publications = self.to.publications() as u64;
        for PublishError { code, message } in results.into_iter().flat_map(|r| outcomes(r, &self.to.topics)) {
            if code == 0 {
                self.accepted += 1;
                continue;
            }
            self.refused += 1;
            if self.refused <= REFUSALS_TOLD_MAX {
                let number = self.answered().div_ceil(publications);
                eprintln!("message {number} refused: {message} ({:?})", tonic::Code::from(code));
            }
        }
    }
}

/// The outcome of each publication of a message, code 0 if it was accepted. One that was refused as a whole counts for all its topics.
fn outcomes(result: PublishResult, topics: &[String]) -> Vec<PublishError> {
    let outcome = |error: Option<PublishError>| error.unwrap_or_default();
    if topics.is_empty() {
        return vec![outcome(result.error)];
    }
    if let Some(error) = result.error {
        return vec![error; topics.len()];
    }
    let named = |(topic, result): (&String, PublishResult)| {
        let PublishError { code, message } = outcome(result.error);
        PublishError { code, message: format!("{topic}: {message}") }
    };
    topics.iter().zip(result.results).map(named).collect()
}

/// Messages as batches of at most [`BATCH_BYTES_MAX`].
fn batches(messages: impl Iterator<Item = Bytes>) -> Vec<Vec<Bytes>> {
    let (mut batches, mut bytes) = (Vec::<Vec<Bytes>>::new(), 0);
    for message in messages {
        bytes += message.len();
        match batches.last_mut() {
            Some(batch) if bytes <= BATCH_BYTES_MAX => batch.push(message),
            _ => {
                bytes = message.len();
                batches.push(vec![message]);
            }
        }
    }
    batches
}

/// Reads messages, at a pace if there is one: `gap` between two. How many there were.
fn read(lines: Lines, gap: Option<Duration>, messages: &mpsc::Sender<Bytes>) -> io::Result<u64> {
    let start = Instant::now();
    let mut read = 0u64;
    for line in lines {
        let line = line?;
        if let Some(gap) = gap {
            thread::sleep((start + gap.mul_f64(read as f64)).saturating_duration_since(Instant::now()));
        }
        read += 1;
        if messages.blocking_send(line.into()).is_err() {
            break; // The stream ended; its reason is told there.
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn what(line: &[&str]) -> Result<(To, Source), String> {
        match Cli::try_parse_from([&["pub"], line].concat()).map_err(|e| e.to_string())?.args.what()? {
            What::Messages(to, source) => Ok((to, source)),
            What::Market(plan) => Err(format!("{plan:?}")),
        }
    }

    fn topic(topic: &str) -> To {
        To { topic: topic.into(), ..To::default() }
    }

    #[test]
    fn everyone_is_reached_only_on_purpose() {
        assert_eq!(what(&["news", "hello"]), Ok((topic("news"), Source::Argument("hello".into()))));
        assert_eq!(what(&["news", "-"]), Ok((topic("news"), Source::Stdin)));
        assert_eq!(what(&["news", "--file", "x"]), Ok((topic("news"), Source::File("x".into()))));
        assert_eq!(what(&["--all", "hello"]), Ok((topic(""), Source::Argument("hello".into()))));
        assert_eq!(what(&["--all", "--file", "x"]), Ok((topic(""), Source::File("x".into()))));
        for wrong in [
            &["", "hello"][..],
            &["--all", "news", "hello"],
            &["news"],
            &["news", "x", "--file", "y"],
            &[],
            &["n", "x", "--rate", "0"],
            &["--all", "x", "--uid", "7"],
            &["--all", "x", "--topic", "a"],
            &["news", "x", "--topic", "a"],
            &["--topic", "", "x"],
            &["n", "x", "--uid", ""],
            &["--simulate", "0"],
            &["--simulate", "10001"],
            &["--simulate", "5", "--duration", "0"],
            &["n", "x", "--simulate", "5"],
            &["n", "x", "--duration", "5"],
        ] {
            assert!(what(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn users_and_several_topics_are_told_by_flags() {
        let hello = || Source::Argument("hello".into());
        assert_eq!(what(&["--everyone", "hello"]), Ok((topic(""), hello())));
        assert_eq!(what(&["--topic", "a", "hello"]), Ok((topic("a"), hello())));
        let both = To { topics: vec!["a".into(), "b".into()], ..To::default() };
        assert_eq!(what(&["--topic", "a", "--topic", "b", "hello"]), Ok((both, hello())));
        let user = To { uid: "7".into(), ..topic("orders") };
        assert_eq!(what(&["orders", "hello", "--uid", "7"]), Ok((user, hello())));
        for market in [&["--simulate", "500"][..], &["quotes", "--simulate", "5", "--rate", "9", "--seed", "3"]] {
            assert!(what(market).unwrap_err().starts_with("Plan"), "{market:?}");
        }
    }

    #[test]
    fn a_message_to_several_topics_has_an_outcome_for_each() {
        let error = |message: &str| PublishError { code: 8, message: message.into() };
        let topics = ["a".to_owned(), "b".to_owned()];
        let of = |error| PublishResult { error, ..Default::default() };
        let result = PublishResult { results: vec![of(None), of(Some(error("full")))], ..Default::default() };
        let codes: Vec<_> = outcomes(result, &topics).into_iter().map(|e| (e.code, e.message)).collect();
        assert_eq!(codes, [(0, "a: ".to_owned()), (8, "b: full".to_owned())]);
        assert_eq!(outcomes(of(Some(error("no"))), &topics), vec![error("no"); 2]);
        assert_eq!(outcomes(of(None), &[]), vec![PublishError::default()]);
    }

    #[test]
    fn batches_keep_the_order_and_their_bound() {
        let message = |bytes: usize| Bytes::from(vec![b'x'; bytes]);
        let sizes = |sizes: &[usize]| -> Vec<Vec<usize>> {
            let batches = batches(sizes.iter().map(|bytes| message(*bytes)));
            batches.iter().map(|batch| batch.iter().map(Bytes::len).collect()).collect()
        };
        let (half, more) = (BATCH_BYTES_MAX / 2, BATCH_BYTES_MAX + 1);
        assert_eq!(sizes(&[1, half, half - 1, 2]), [vec![1, half, half - 1], vec![2]]);
        assert_eq!(sizes(&[1, more, 3]), [vec![1], vec![more], vec![3]]);
        assert!(sizes(&[]).is_empty());
    }

    #[test]
    fn what_was_accepted_and_refused_is_counted() {
        let (address, seen) = crate::load::publisher::pretend::gateway(|m| m.data == "no");
        let args = Cli::try_parse_from(["pub", "news", "-", "--token", "secret", "--grpc", &address]).unwrap().args;
        let lines = (0..500).map(|i| Ok(if i % 100 == 7 { b"no".to_vec() } else { format!("{i}").into_bytes() }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(publish(&args, topic("news"), Box::new(lines)));
        assert_eq!(result, Ok((495, 5)));
        assert!(seen.lock().unwrap().iter().flatten().all(|(topic, _)| topic == "news"));
    }

    #[test]
    fn a_rate_is_kept() {
        let (message, mut messages) = mpsc::channel(100);
        let start = Instant::now();
        let lines = (0..6).map(|_| Ok(b"x".to_vec()));
        assert_eq!(read(Box::new(lines), Some(Duration::from_millis(10)), &message).unwrap(), 6);
        assert!(start.elapsed() >= Duration::from_millis(50));
        drop(message);
        assert_eq!(std::iter::from_fn(|| messages.blocking_recv()).count(), 6);
    }
}
