//! `fanwire pub`: arguments, lines or a file → one `PublishStream`.

use crate::load::publisher::{grpc_client, with_token};
use crate::proto::v1::{PublishBatch, PublishRequest};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Messages of one batch.
const BATCH_MESSAGES_MAX: usize = 100;
/// Bytes of one batch, unless its first message alone is larger.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Batches read ahead of the gateway.
const AHEAD_MAX: usize = 16;
/// Refusals told one by one; the others are only counted.
const REFUSALS_TOLD_MAX: u64 = 10;

const EXIT_CODES: &str = "\
Exit codes:
  0  everything was accepted
  1  something was refused, or the gateway can't be reached
  2  wrong arguments";

/// Each accepted message is in the queue of every shard that has subscribers of the topic.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Args {
    /// Where to publish; left out with --all
    #[arg(required_unless_present = "all")]
    topic: Option<String>,
    /// The message, or - for one message from each line of stdin
    data: Option<String>,
    /// To every client, subscribed to anything or not
    #[arg(long)]
    all: bool,
    /// One message from each line of this file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// At most so many messages a second
    #[arg(long, value_name = "MESSAGES/S")]
    rate: Option<f64>,
    /// The gateway's gRPC interface
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10067")]
    grpc: String,
    /// Bearer token
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
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
    let (topic, source) = match args.what() {
        Ok(what) => what,
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
    let result = runtime.map_err(|e| e.to_string()).and_then(|r| r.block_on(publish(&args, topic, lines)));
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

impl Args {
    /// Topic and source, or what is wrong with the arguments.
    fn what(&self) -> Result<(String, Source), String> {
        let (topic, data) = match (self.all, &self.topic, &self.data) {
            (true, data, None) => (String::new(), data.clone()),
            (true, _, Some(_)) => return Err("--all takes the place of TOPIC: give one of them".into()),
            (false, Some(topic), data) if !topic.is_empty() => (topic.clone(), data.clone()),
            (false, ..) => return Err("an empty TOPIC would reach everyone: say --all for that".into()),
        };
        if self.rate.is_some_and(|rate| rate <= 0.0 || !rate.is_finite()) {
            return Err("--rate: messages a second, above 0".into());
        }
        let source = match (data, &self.file) {
            (None, Some(file)) => Source::File(file.clone()),
            (Some(_), Some(_)) => return Err("DATA and --file: give one of them".into()),
            (Some(data), None) if data == "-" => Source::Stdin,
            (Some(data), None) => Source::Argument(data),
            (None, None) => return Err("no message: give DATA, - for stdin, or --file".into()),
        };
        Ok((topic, source))
    }
}

type Lines = Box<dyn Iterator<Item = io::Result<Vec<u8>>> + Send>;

/// Publishes all lines; how many were accepted and refused.
async fn publish(args: &Args, topic: String, lines: Lines) -> Result<(u64, u64), String> {
    let mut client = grpc_client(&args.grpc).await?;
    let (batch, batches) = mpsc::channel(AHEAD_MAX);
    let gap = args.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let reader = thread::spawn(move || read(lines, gap, &batch));
    let (mut accepted, mut refused) = (0, 0);
    let requests = ReceiverStream::new(batches).map(move |messages: Vec<Bytes>| PublishBatch {
        id: 0, // Batches are answered in order.
        messages: messages
            .into_iter()
            .map(|data| PublishRequest { topic: topic.clone(), data, ..Default::default() })
            .collect(),
    });
    let failed = |s: tonic::Status| format!("PublishStream: {} ({:?})", s.message(), s.code());
    let request = with_token(requests, args.token.as_deref())?;
    let mut answers = client.publish_stream(request).await.map_err(failed)?.into_inner();
    while let Some(answer) = answers.message().await.map_err(failed)? {
        for result in answer.results {
            let Some(error) = result.error else {
                accepted += 1;
                continue;
            };
            refused += 1;
            if refused <= REFUSALS_TOLD_MAX {
                let (number, code) = (accepted + refused, tonic::Code::from(error.code));
                eprintln!("message {number} refused: {} ({code:?})", error.message);
            }
        }
    }
    let read = reader.join().map_err(|_| "reading the messages panicked")?.map_err(|e| format!("reading: {e}"))?;
    match read - accepted - refused {
        0 => Ok((accepted, refused)),
        unanswered => Err(format!("the gateway ended the stream with {unanswered} messages unanswered")),
    }
}

/// Reads messages into batches, at a pace if there is one: `gap` between two. A batch is what has been read when the one
/// before is on its way, so that a line typed by hand does not wait for the next. How many messages there were.
fn read(lines: Lines, gap: Option<Duration>, batches: &mpsc::Sender<Vec<Bytes>>) -> io::Result<u64> {
    let start = Instant::now();
    let (mut batch, mut bytes, mut read) = (Vec::new(), 0, 0u64);
    for line in lines {
        let line = line?;
        if let Some(gap) = gap {
            thread::sleep((start + gap.mul_f64(read as f64)).saturating_duration_since(Instant::now()));
        }
        if bytes + line.len() > BATCH_BYTES_MAX
            && !batch.is_empty()
            && batches.blocking_send(std::mem::take(&mut batch)).is_err()
        {
            return Ok(read);
        }
        bytes = if batch.is_empty() { line.len() } else { bytes + line.len() };
        batch.push(Bytes::from(line));
        read += 1;
        match batches.try_send(std::mem::take(&mut batch)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(full)) if full.len() < BATCH_MESSAGES_MAX => batch = full,
            Err(mpsc::error::TrySendError::Full(full)) => {
                if batches.blocking_send(full).is_err() {
                    return Ok(read);
                }
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Ok(read), // The stream ended; its reason is told there.
        }
    }
    if !batch.is_empty() {
        batches.blocking_send(batch).ok();
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

    fn what(line: &[&str]) -> Result<(String, Source), String> {
        Cli::try_parse_from([&["pub"], line].concat()).map_err(|e| e.to_string())?.args.what()
    }

    #[test]
    fn everyone_is_reached_only_on_purpose() {
        assert_eq!(what(&["news", "hello"]), Ok(("news".into(), Source::Argument("hello".into()))));
        assert_eq!(what(&["news", "-"]), Ok(("news".into(), Source::Stdin)));
        assert_eq!(what(&["news", "--file", "x"]), Ok(("news".into(), Source::File("x".into()))));
        assert_eq!(what(&["--all", "hello"]), Ok((String::new(), Source::Argument("hello".into()))));
        assert_eq!(what(&["--all", "--file", "x"]), Ok((String::new(), Source::File("x".into()))));
        for wrong in [
            &["", "hello"][..],
            &["--all", "news", "hello"],
            &["news"],
            &["news", "x", "--file", "y"],
            &[],
            &["n", "x", "--rate", "0"],
        ] {
            assert!(what(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn lines_become_messages_in_order_and_full_batches_wait() {
        let (batch, mut batches) = mpsc::channel(1);
        let lines: Vec<io::Result<Vec<u8>>> = (0..1000).map(|i| Ok(format!("{i}").into_bytes())).collect();
        let reader = thread::spawn(move || read(Box::new(lines.into_iter()), None, &batch));
        let mut got = Vec::new();
        while let Some(batch) = batches.blocking_recv() {
            assert!(batch.len() <= BATCH_MESSAGES_MAX);
            got.extend(batch);
        }
        assert_eq!(reader.join().unwrap().unwrap(), 1000);
        assert!(got.iter().enumerate().all(|(i, b)| **b == *i.to_string().as_bytes()) && got.len() == 1000);
    }

    #[test]
    fn what_was_accepted_and_refused_is_counted() {
        let (address, seen) = crate::load::publisher::pretend::gateway(|m| m.data == "no");
        let args = Cli::try_parse_from(["pub", "news", "-", "--token", "secret", "--grpc", &address]).unwrap().args;
        let lines = (0..500).map(|i| Ok(if i % 100 == 7 { b"no".to_vec() } else { format!("{i}").into_bytes() }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(publish(&args, "news".into(), Box::new(lines)));
        assert_eq!(result, Ok((495, 5)));
        assert!(seen.lock().unwrap().iter().flatten().all(|(topic, _)| topic == "news"));
    }

    #[test]
    fn a_rate_is_kept() {
        let (batch, mut batches) = mpsc::channel(100);
        let start = Instant::now();
        let lines = (0..6).map(|_| Ok(b"x".to_vec()));
        assert_eq!(read(Box::new(lines), Some(Duration::from_millis(10)), &batch).unwrap(), 6);
        assert!(start.elapsed() >= Duration::from_millis(50));
        drop(batch);
        assert_eq!(std::iter::from_fn(|| batches.blocking_recv()).flatten().count(), 6);
    }
}
