//! Logs go to stderr, human or JSON, and their level can change while the gateway runs.

use crate::config::{Log, is_log_filter};
use crate::ingest::LogLevel;
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// Changes the level of a running process.
#[derive(Clone, Debug)]
pub struct Handle {
    filter: reload::Handle<Targets, Registry>,
    /// As it was set last.
    level: Arc<Mutex<String>>,
}

impl Handle {
    /// From now on `level` holds, written like `log.level`.
    ///
    /// # Errors
    /// It is no filter; the old one stays.
    pub fn set_level(&self, level: &str) -> Result<(), ParseError> {
        let filter = filter(level)?;
        // It fails only if the subscriber is gone, and then there is nothing to filter.
        let _ = self.filter.reload(filter);
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = level.to_owned();
        Ok(())
    }
}

impl LogLevel for Handle {
    fn level(&self) -> String {
        self.level.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Levels in any case, as zap reads them; or a filter, written like `log.level`.
    fn set_level(&self, level: &str) -> Result<(), String> {
        let lower = level.to_ascii_lowercase();
        let level = if is_log_filter(&lower) && !lower.contains('=') { &lower } else { level };
        if !is_log_filter(level) {
            return Err(format!("unrecognized level: {level:?}"));
        }
        Handle::set_level(self, level).map_err(|e| e.to_string())
    }
}

/// Sets up logging for this process, as a validated `log` says. Call it once.
///
/// # Panics
/// At the second call, and if `log` was not validated.
pub fn init(log: &Log) -> Handle {
    let (subscriber, handle) = subscriber(log, io::stderr, io::stderr().is_terminal());
    subscriber.init();
    handle
}

fn subscriber<W>(log: &Log, writer: W, ansi: bool) -> (impl Subscriber + Send + Sync + use<W>, Handle)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter(&log.level).expect("validated: log.level is a filter");
    let (filter, handle) = reload::Layer::new(filter);
    let format = fmt::layer().with_writer(writer);
    let format = if log.format == "json" { format.json().boxed() } else { format.with_ansi(ansi).boxed() };
    (
        tracing_subscriber::registry().with(filter).with(format),
        Handle { filter: handle, level: Arc::new(Mutex::new(log.level.clone())) },
    )
}

/// The client of NATS speaks of each attempt as `info`, and of a refused login as its own failure. What of that matters our own lines say;
/// its are there if they are asked for by name.
fn filter(level: &str) -> Result<Targets, ParseError> {
    const CLIENT: &str = "async_nats";
    let filter = Targets::from_str(level)?;
    Ok(if level.contains(CLIENT) { filter } else { filter.with_target(CLIENT, LevelFilter::OFF) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Memory {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn logging(level: &str, format: &str) -> (Memory, impl Subscriber + Send + Sync + use<>, Handle) {
        let memory = Memory::default();
        let writer = memory.clone();
        let log = Log { level: level.into(), format: format.into(), ..Log::default() };
        let (subscriber, handle) = subscriber(&log, move || writer.clone(), false);
        (memory, subscriber, handle)
    }

    #[test]
    fn the_level_changes_while_it_runs() {
        let (memory, subscriber, handle) = logging("warn", "human");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("one");
            handle.set_level("warn,fanwire=debug").unwrap();
            tracing::debug!("two");
            tracing::debug!(target: "elsewhere", "three");
            assert!(handle.set_level("fanwire=loud").is_err());
            tracing::debug!("four");
        });
        let text = memory.text();
        assert!(!text.contains("one") && !text.contains("three"), "{text}");
        assert!(text.contains("two") && text.contains("four"), "{text}");
    }

    #[test]
    fn a_level_set_by_name_is_told_by_name_and_nonsense_changes_nothing() {
        let (_, _subscriber, handle) = logging("info", "human");
        let log: &dyn LogLevel = &handle;
        for (wish, level) in
            [("debug", "debug"), ("WARN", "warn"), ("fanwire::accept=debug,info", "fanwire::accept=debug,info")]
        {
            log.set_level(wish).unwrap();
            assert_eq!(log.level(), level);
        }
        for wrong in ["loud", "", "fanwire=loud", "info debug"] {
            assert!(log.set_level(wrong).unwrap_err().starts_with("unrecognized level"), "{wrong}");
        }
        assert_eq!(log.level(), "fanwire::accept=debug,info");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let (memory, subscriber, _handle) = logging("info", "json");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(shard = 3, "up");
            tracing::info!("a \"quoted\"\nline");
        });
        let lines: Vec<serde_json::Value> =
            memory.text().lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["fields"]["shard"], 3);
        assert_eq!(lines[1]["fields"]["message"], "a \"quoted\"\nline");
    }
}
