//! A stream of NATS JetStream between publishers and the nodes that deliver: `cluster.transport = "nats"`.
//!
//! ```text
//! control core                                  thread "nats"                              NATS
//! publisher ─► Control ─► outbox (bounded) ────► burst, pipelined ───────────────────────► stream
//!      ▲                                           ack: offset = sequence, or a refusal ◄────┤
//!      └─────────── answers ◄──────────────────────┘                                         │
//! topics ◄── deliver, in the stream's order ◄──── batches (bounded) ◄── consumer ◄───────────┘  every node
//! ```
//!
//! NATS has a thread and a runtime of its own: a client can't be told not to connect again by itself, so that each connection gets a
//! runtime that ends with it, and the control core has the other half of the work.

mod follow;
mod outbox;
mod session;
mod stream;
mod subject;

use super::links::Room;
use super::pause::Pause;
use super::{Delivered, InPlace, Lost, told};
use crate::config::{Cluster, NatsStorage};
use crate::frame::{Publication, Target};
use crate::ids::Epoch;
use crate::metrics::ClusterMetrics;
use crate::topics::{Ack, Refusal};
use follow::Cursor;
use outbox::{Fate, Outbox};
pub(super) use session::Access;
use session::Login;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stream::Wanted;
use subject::Subjects;
use tokio::sync::{Notify, mpsc, watch};

/// What is the matter before a server of NATS was asked.
const NOT_ASKED: &str = "NATS has not answered yet";
/// Batches on their way to the control core.
const BATCHES_MAX: usize = 4;
/// How often publications that have waited too long are looked for.
const EXPIRY: Duration = Duration::from_millis(50);
/// How often what goes on is said.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Is told what became of a publication.
pub type Done = Box<dyn FnOnce(Result<Ack, Refusal>) + Send>;

/// Who is owed an answer, and since when.
struct Owed {
    done: Done,
    since: Instant,
}

impl Owed {
    /// That it may be in the stream or not.
    fn late(&self) -> Refusal {
        Refusal::StreamLate { waited_ms: self.since.elapsed().as_millis() as u64 }
    }
}

/// What is to be told to whom.
struct Answer {
    done: Done,
    outcome: Result<Ack, Refusal>,
}

/// What came from the stream.
enum Followed {
    /// Offsets count anew.
    Anew { epoch: Epoch, after: u64 },
    /// Messages in their order, each with its sequence.
    Messages(Vec<(u64, Publication)>),
}

/// What both threads know.
struct Shared {
    names: Names,
    subjects: Subjects,
    wanted: Wanted,
    wanted_name: String,
    is_following: bool,
    publish_timeout: Duration,
    outbox: Mutex<Outbox<Owed>>,
    /// There is more to be sent.
    grown: Notify,
    answers: mpsc::UnboundedSender<Vec<Answer>>, // Bounded as the outbox is.
    epoch: AtomicU64,
    /// What is the matter, and since when; nothing if all is well.
    trouble: watch::Sender<Option<(String, Instant)>>,
    /// Why the stream did not take what was published last, though it is there: a full disk, no leader.
    put_off: watch::Sender<Option<String>>,
    removals: Repeated,
    refusals: Repeated,
    unwanted: Repeated,
    silences: Repeated,
    overdue: Repeated,
    renewals: Repeated,
    fetches: Repeated,
    metrics: Arc<ClusterMetrics>,
}

impl Shared {
    fn new(settings: &Cluster, answers: mpsc::UnboundedSender<Vec<Answer>>, metrics: Arc<ClusterMetrics>) -> Shared {
        let subjects = Subjects::new(&settings.nats_subjects);
        Shared {
            names: Names::new(),
            wanted: Wanted::new(settings, &subjects),
            wanted_name: settings.nats_stream.clone(),
            subjects,
            is_following: settings.role.subscribes(),
            publish_timeout: Duration::from_millis(settings.nats_publish_timeout_ms),
            outbox: Mutex::new(Outbox::new(settings.nats_in_flight_max, settings.nats_in_flight_bytes_max)),
            grown: Notify::new(),
            answers,
            epoch: AtomicU64::new(0),
            put_off: watch::Sender::new(None),
            trouble: watch::Sender::new(Some((NOT_ASKED.into(), Instant::now()))),
            removals: Repeated::default(),
            refusals: Repeated::default(),
            unwanted: Repeated::default(),
            silences: Repeated::default(),
            overdue: Repeated::default(),
            renewals: Repeated::default(),
            fetches: Repeated::default(),
            metrics,
        }
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox<Owed>> {
        // A panic under the lock would be a broken invariant of the outbox; what it holds is still owed an answer.
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Relaxed))
    }

    fn set_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Relaxed);
    }

    fn well(&self) {
        self.metrics.nats_connected.set(1);
        self.trouble.send_replace(None);
    }

    fn troubled(&self, text: String) {
        self.metrics.nats_connected.set(0);
        self.metrics.nats_failures.add(1);
        let was = self.trouble.borrow().clone();
        match &was {
            Some((before, _)) if before != NOT_ASKED => tracing::debug!("still not connected: {text}"),
            _ => tracing::warn!("{text}; publishers are refused and nothing is delivered until it is back"),
        }
        let since = was.map_or_else(Instant::now, |(_, since)| since);
        self.trouble.send_replace(Some((text, since)));
    }

    fn answer(&self, answers: Vec<Answer>) {
        if !answers.is_empty() {
            // In vain once the gateway is ending, when nobody waits any more.
            let _ = self.answers.send(answers);
        }
    }

    /// The stream does not want it, or not this copy of it.
    fn refusal(&self, (owed, fate): (Owed, Fate), why: Refusal) -> Answer {
        let refusal = match fate {
            Fate::NotStored => {
                self.metrics.nats_failed_refused.add(1);
                let said = format!("messages of publishers are not in the stream, and they were told so: {why}");
                self.unwanted.say(1, &said);
                why
            }
            Fate::Unknown => {
                self.metrics.nats_failed_late.add(1);
                owed.late()
            }
        };
        Answer { done: owed.done, outcome: Err(refusal) }
    }

    /// The stream takes nothing for now.
    fn put_off(&self, why: String) {
        self.put_off.send_if_modified(|was| {
            let is_new = was.as_ref() != Some(&why);
            if is_new {
                *was = Some(why);
            }
            is_new
        });
    }

    /// The stream takes what is published.
    fn taking(&self) {
        if self.put_off.borrow().is_some() {
            self.put_off.send_replace(None);
        }
    }

    /// Why what was not sent, or is certainly not stored, is not.
    fn why_not_stored(&self) -> String {
        let trouble = self.trouble.borrow().as_ref().map(|(text, _)| text.clone());
        let put_off = || self.put_off.borrow().clone();
        trouble.or_else(put_off).unwrap_or_else(|| "NATS does not acknowledge what was sent before it".into())
    }

    /// Tells publishers that what they gave is not, or may not be, in the stream.
    fn give_up(&self, given_up: Vec<(Owed, Fate)>, why: &dyn std::fmt::Display) {
        let answer = |(owed, fate): (Owed, Fate)| {
            let refusal = match fate {
                Fate::NotStored => Refusal::StreamAway { trouble: why.to_string() },
                Fate::Unknown => owed.late(),
            };
            Answer { done: owed.done, outcome: Err(refusal) }
        };
        let unknown = given_up.iter().filter(|(_, fate)| *fate == Fate::Unknown).count();
        let not_stored = given_up.len() - unknown;
        {
            let outbox = self.outbox(); // These cells are written under this lock.
            self.metrics.nats_failed_late.add(unknown as u64);
            self.metrics.nats_failed_away.add(not_stored as u64);
            self.metrics.nats_in_flight.set(outbox.len() as u64);
        }
        self.answer(given_up.into_iter().map(answer).collect());
    }

    /// Takes a publication, or has it refused at once.
    fn publish(&self, subject: Arc<str>, data: &[u8], done: Done) {
        let now = Instant::now();
        let trouble = self
            .trouble
            .borrow()
            .as_ref()
            .and_then(|(text, since)| (now.duration_since(*since) >= self.publish_timeout).then(|| text.clone()));
        let mut outbox = self.outbox();
        let refused = match trouble {
            Some(trouble) => {
                self.metrics.nats_failed_away.add(1);
                Some(Answer { done, outcome: Err(Refusal::StreamAway { trouble }) })
            }
            None => match outbox.push(now, subject, data, Owed { done, since: now }) {
                Ok(()) => {
                    self.metrics.nats_published.add(1);
                    None
                }
                Err(Owed { done, .. }) => {
                    self.metrics.nats_failed_busy.add(1);
                    Some(Answer { done, outcome: Err(Refusal::StreamBusy { messages: outbox.len() }) })
                }
            },
        };
        self.metrics.nats_in_flight.set(outbox.len() as u64);
        drop(outbox);
        match refused {
            None => self.grown.notify_one(),
            Some(answer) => self.answer(vec![answer]),
        }
    }
}

/// What the stream knows a message by that is sent again (`Nats-Msg-Id`): the same for the same number, and not to be guessed. Whoever may
/// publish to any subject of the stream could take the next ones otherwise, and ours would be taken for copies of his.
struct Names(std::hash::RandomState);

impl Names {
    fn new() -> Names {
        Names(std::hash::RandomState::new())
    }

    fn of(&self, id: u64) -> String {
        format!("{:016x}{:016x}", self.0.hash_one((id, 0u8)), self.0.hash_one((id, 1u8)))
    }
}

/// Says what may go on and on: at once, and then no more often than [`SAY_EVERY`].
#[derive(Default)]
struct Repeated(Mutex<(u64, Option<Instant>)>);

impl Repeated {
    fn say(&self, count: u64, why: &str) {
        if let Some(count) = self.due(Instant::now(), count) {
            tracing::warn!(count, "{why}");
        }
    }

    /// How many to say now, with those that were not said before.
    fn due(&self, now: Instant, count: u64) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (unsaid, last) = &mut *state;
        *unsaid += count;
        if last.is_some_and(|last| now.duration_since(last) < SAY_EVERY) {
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(unsaid))
    }
}

/// Reads the file that a setting names.
type ReadFile<'a> = dyn Fn(&'static str, &String) -> Result<Vec<u8>, super::ClusterError> + 'a;

/// How this node reaches NATS, its files read.
///
/// # Errors
/// One of them can't be used.
pub(super) fn access(settings: &Cluster, read: &ReadFile) -> Result<Access, super::ClusterError> {
    let secret =
        |key, file: &String| Ok::<_, super::ClusterError>(String::from_utf8_lossy(&read(key, file)?).trim().to_owned());
    let given = |file: &String| !file.is_empty();
    let login = if given(&settings.nats_user) {
        let password = secret("cluster.nats_password_file", &settings.nats_password_file)?;
        Login::User { name: settings.nats_user.clone(), password }
    } else if given(&settings.nats_token_file) {
        Login::Token(secret("cluster.nats_token_file", &settings.nats_token_file)?)
    } else if given(&settings.nats_credentials_file) {
        // The last line of dashes counts only with its end.
        Login::Credentials(secret("cluster.nats_credentials_file", &settings.nats_credentials_file)? + "\n")
    } else {
        Login::Nobody
    };
    for (key, file) in [
        ("cluster.nats_ca_file", &settings.nats_ca_file),
        ("cluster.nats_certificate_file", &settings.nats_certificate_file),
        ("cluster.nats_certificate_key_file", &settings.nats_certificate_key_file),
    ] {
        if given(file) {
            read(key, file)?;
        }
    }
    let identity = given(&settings.nats_certificate_file)
        .then(|| (settings.nats_certificate_file.clone(), settings.nats_certificate_key_file.clone()));
    let access = Access {
        servers: settings.nats.clone(),
        login,
        ca_file: settings.nats_ca_file.clone(),
        identity,
        name: format!("fanwire {}", if settings.name.is_empty() { super::host_name() } else { settings.name.clone() }),
    };
    let file = &settings.nats_credentials_file;
    access.options().map_err(|error| super::ClusterError::Credentials { file: file.clone(), error })?;
    Ok(access)
}

/// The thread that will speak to NATS: made before cores are pinned, so that it may run on any.
pub(super) struct Thread {
    work: std::sync::mpsc::SyncSender<Work>,
    ended: watch::Receiver<bool>,
}

/// Tells of a panic on the thread: publishers and `/readyz` would know nothing of it otherwise.
struct SaysSo(Arc<Shared>);

impl Drop for SaysSo {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.troubled(
                "the thread of NATS has panicked, a defect of ours that the log shows: restart this node".into(),
            );
        }
    }
}

struct Work {
    shared: Arc<Shared>,
    access: Access,
    control: mpsc::Sender<Followed>,
    stop: watch::Receiver<bool>,
}

impl Thread {
    pub(super) fn start() -> std::io::Result<Thread> {
        let (work, begun) = std::sync::mpsc::sync_channel::<Work>(1);
        let (ending, ended) = watch::channel(false);
        std::thread::Builder::new().name("nats".into()).spawn(move || {
            // Nothing comes if the gateway does not start after all.
            if let Ok(work) = begun.recv() {
                work.run();
            }
            ending.send_replace(true);
        })?;
        Ok(Thread { work, ended })
    }
}

impl Work {
    /// One connection after the other, until told to stop.
    fn run(self) {
        let _guard = SaysSo(self.shared.clone());
        let Work { shared, access, control, stop } = self;
        let mut pause = Pause::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut cursor = Cursor::default();
        for attempt in 0.. {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    shared.troubled(format!("no runtime for NATS: {error}"));
                    std::thread::sleep(SAY_EVERY);
                    continue;
                }
            };
            let ended = runtime.block_on(async {
                tokio::select! {
                    ended = session::run(&shared, &access, attempt, &mut cursor, &control) => Some(ended),
                    () = told(stop.clone()) => None,
                }
            });
            // With all of that connection's tasks: nothing that was to go over it goes over another.
            let Some(Err(trouble)) = ended else { return };
            runtime.shutdown_background();
            shared.outbox().cut_off();
            if shared.trouble.borrow().is_none() {
                pause.reset();
            }
            shared.troubled(trouble);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let Ok(runtime) = runtime else { continue };
            let is_over = runtime.block_on(async {
                tokio::select! {
                    () = pause.wait() => false,
                    () = told(stop.clone()) => true,
                }
            });
            if is_over {
                return;
            }
        }
    }
}

/// This node's part of the stream, on the control core.
pub(super) struct Nats {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
    last: Mutex<Option<(Arc<str>, Arc<str>)>>,
}

impl Nats {
    /// Begins to publish and to follow, as tasks of the current runtime and on the thread.
    pub(super) fn start(
        thread: Thread,
        access: Access,
        settings: &Cluster,
        waiting_max: u32,
        subscribers: Arc<dyn InPlace>,
        metrics: Arc<ClusterMetrics>,
    ) -> Nats {
        let (answers, answered) = mpsc::unbounded_channel();
        let (control, followed) = mpsc::channel(BATCHES_MAX);
        let (stop, stopping) = watch::channel(false);
        let shared = Arc::new(Shared::new(settings, answers, metrics));
        if settings.nats_storage == NatsStorage::Memory {
            tracing::info!("cluster.nats_storage = \"memory\": what the stream has is gone when NATS ends");
        }
        tokio::spawn(tell(shared.clone(), answered));
        tokio::spawn(bring(shared.clone(), followed, subscribers, waiting_max));
        let work = Work { shared: shared.clone(), access, control, stop: stopping };
        if thread.work.send(work).is_err() {
            shared.troubled("the thread of NATS has ended".into());
        }
        Nats { shared, stop, ended: thread.ended, last: Mutex::default() }
    }

    /// Takes a publication for the stream; `done` is told what became of it, later and from the control core.
    pub(super) fn publish(&self, publication: &Publication, done: Done) {
        let subject = self.subject(&publication.target);
        self.shared.publish(subject, &publication.data, done);
    }

    /// Publishers keep to one topic for long, and so share its subject.
    fn subject(&self, target: &Target) -> Arc<str> {
        let Target::Topic(topic) = target else { return self.shared.subjects.of(target).into() };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((name, subject)) if name == topic => subject.clone(),
            _ => {
                let subject: Arc<str> = self.shared.subjects.of(target).into();
                *last = Some((topic.clone(), subject.clone()));
                subject
            }
        }
    }

    /// Completes when a server has answered, or one was asked in vain.
    pub(super) async fn settled(&self) {
        let mut trouble = self.shared.trouble.subscribe();
        let asked = trouble.wait_for(|trouble| trouble.as_ref().is_none_or(|(text, _)| text != NOT_ASKED));
        drop(asked.await);
    }

    /// What is the matter.
    pub(super) fn trouble(&self) -> watch::Receiver<Option<(String, Instant)>> {
        self.shared.trouble.subscribe()
    }

    /// Why the stream did not take what was published last.
    pub(super) fn put_off(&self) -> watch::Receiver<Option<String>> {
        self.shared.put_off.subscribe()
    }

    /// Waits for what is in flight, as long as `patience`, and ends.
    pub(super) async fn stop(&self, patience: Duration) {
        let end = Instant::now() + patience;
        while self.shared.outbox().len() > 0 && Instant::now() < end {
            tokio::time::sleep(EXPIRY).await;
        }
        self.stop.send_replace(true);
        let mut ended = self.ended.clone();
        let ended = ended.wait_for(|ended| *ended);
        let _ = tokio::time::timeout(end.saturating_duration_since(Instant::now()) + EXPIRY, ended).await;
    }
}

/// Tells publishers what became of their publications, and gives up those that have waited too long.
async fn tell(shared: Arc<Shared>, mut answered: mpsc::UnboundedReceiver<Vec<Answer>>) {
    let mut expiry = tokio::time::interval(EXPIRY);
    loop {
        tokio::select! {
            biased;
            answers = answered.recv() => {
                let Some(answers) = answers else { return };
                answers.into_iter().for_each(|Answer { done, outcome }| done(outcome));
            }
            _ = expiry.tick() => {
                let then = Instant::now().checked_sub(shared.publish_timeout);
                let late = then.map(|then| shared.outbox().expire(then)).unwrap_or_default();
                if !late.is_empty() {
                    let why = shared.why_not_stored();
                    let said = format!("messages of publishers were not acknowledged in time, and they were told so: {why}");
                    shared.silences.say(late.len() as u64, &said);
                    shared.give_up(late, &why);
                }
            }
        }
    }
}

/// Brings what came from the stream to this node's subscribers, when few enough of those before it wait for room: each that waits is
/// counted and none that does not, so that a shard which stands still is not what the others go by.
async fn bring(
    shared: Arc<Shared>,
    mut followed: mpsc::Receiver<Followed>,
    subscribers: Arc<dyn InPlace>,
    waiting_max: u32,
) {
    let room = Room::new(waiting_max);
    while let Some(followed) = followed.recv().await {
        let mut rest = match followed {
            Followed::Anew { epoch, after } => {
                subscribers.begin(epoch, after);
                continue;
            }
            Followed::Messages(messages) => messages,
        };
        while !rest.is_empty() {
            let (now, behind) = room.split(rest);
            rest = behind;
            let mut taken = room.take(now.len()).await;
            let Delivered { lost, waits, waiting } = subscribers.deliver_in_place(now);
            shared.count(lost);
            if let Some(waiting) = waiting {
                let (shared, held) = (shared.clone(), taken.split(waits));
                tokio::spawn(async move {
                    shared.count(waiting.await);
                    drop(held);
                });
            }
        }
    }
}

impl Shared {
    /// On the control core.
    fn count(&self, lost: Lost) {
        self.metrics.nats_lost_refused.add(lost.refused as u64);
        self.metrics.nats_lost_draining.add(lost.draining as u64);
        if lost.refused > 0 {
            let why = "messages of the stream are lost to subscribers here: no room within publish.publish_wait_ms, or not to be delivered (too large, not UTF-8)";
            self.refusals.say(lost.refused as u64, why);
        }
    }
}

/// The subject of NATS for a topic, a user, or both; for everyone if both are empty.
pub fn subject(settings: &Cluster, uid: &str, topic: &str) -> String {
    Subjects::new(&settings.nats_subjects).of(&Target::user_or_topic(uid, topic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_for_the_same_message_and_says_nothing_of_the_next() {
        let (one, other) = (Names::new(), Names::new());
        assert_eq!(one.of(7), one.of(7));
        let names = [one.of(7), one.of(8), other.of(7)];
        assert!(names.iter().all(|name| name.len() == 32), "{names:?}");
        let beginnings: std::collections::HashSet<_> =
            names.iter().flat_map(|name| [&name[..16], &name[16..]]).collect();
        assert_eq!(beginnings.len(), 6, "{names:?}");
    }

    #[test]
    fn what_goes_on_is_said_at_once_and_then_rarely_with_all_that_was_not_said() {
        let (repeated, start) = (Repeated::default(), Instant::now());
        let due = |after: Duration| repeated.due(start + after, 2);
        assert_eq!(due(Duration::ZERO), Some(2));
        assert_eq!([1, 2, 3].map(|s| due(Duration::from_secs(s))), [None; 3]);
        assert_eq!((due(SAY_EVERY), due(SAY_EVERY)), (Some(8), None));
    }

    pub(super) fn shared() -> Arc<Shared> {
        Arc::new(Shared::new(&Cluster::default(), mpsc::unbounded_channel().0, Arc::default()))
    }

    /// Subscribers of which one in each batch stands still.
    struct Half(Mutex<Vec<usize>>);

    impl InPlace for Half {
        fn begin(&self, _: Epoch, _: u64) {}

        fn deliver_in_place(&self, publications: Vec<(u64, Publication)>) -> Delivered {
            self.0.lock().unwrap().push(publications.len());
            Delivered { lost: Lost::default(), waits: 1, waiting: Some(Box::pin(std::future::pending())) }
        }
    }

    #[test]
    fn a_message_that_waits_for_room_takes_its_own_and_not_that_of_its_batch() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (control, followed) = mpsc::channel(100);
        let subscribers = Arc::new(Half(Mutex::default()));
        for batch in 0..30u64 {
            let messages = (0..10).map(|n| (batch * 10 + n, Publication::new("t", bytes::Bytes::new()))).collect();
            assert!(control.try_send(Followed::Messages(messages)).is_ok());
        }
        runtime.block_on(async {
            tokio::spawn(bring(shared(), followed, subscribers.clone(), 20));
            for _ in 0..1000 {
                tokio::task::yield_now().await; // All of it is on this thread.
            }
        });
        // 20 places, of which each batch keeps one and wants ten to begin with.
        assert_eq!(subscribers.0.lock().unwrap().len(), 11);
    }

    #[test]
    fn a_stream_that_takes_nothing_says_why_until_it_does() {
        let shared = shared();
        shared.well();
        assert!(shared.why_not_stored().contains("does not acknowledge"));
        shared.put_off("no space left on device".into());
        assert_eq!(shared.why_not_stored(), "no space left on device");
        shared.taking();
        assert!(shared.why_not_stored().contains("does not acknowledge"));
    }

    #[test]
    fn who_is_given_up_early_is_told_how_long_it_was() {
        let owed = Owed { done: Box::new(drop), since: Instant::now() };
        assert!(matches!(owed.late(), Refusal::StreamLate { waited_ms: ..4000 }), "less than the publish timeout");
    }

    #[test]
    fn a_panic_on_the_thread_of_nats_is_a_trouble() {
        let shared = shared();
        shared.well();
        let guarded = SaysSo(shared.clone());
        let panicked = std::thread::spawn(move || {
            let _guard = guarded;
            panic!("a defect");
        });
        assert!(panicked.join().is_err());
        assert!(shared.why_not_stored().contains("restart this node"));
    }
}
