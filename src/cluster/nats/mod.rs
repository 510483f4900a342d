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
    node: u64,
    subjects: Subjects,
    wanted: Wanted,
    wanted_name: String,
    is_following: bool,
    publish_timeout: Duration,
    outbox: Mutex<Outbox<Done>>,
    /// There is more to be sent.
    grown: Notify,
    answers: mpsc::UnboundedSender<Vec<Answer>>, // Bounded as the outbox is.
    epoch: AtomicU64,
    /// What is the matter, and since when; nothing if all is well.
    trouble: watch::Sender<Option<(String, Instant)>>,
    removals: Repeated,
    refusals: Repeated,
    silences: Repeated,
    metrics: Arc<ClusterMetrics>,
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox<Done>> {
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

    fn refuse(&self, done: Option<Done>, reason: String) {
        if let Some(done) = done {
            self.metrics.nats_failed_refused.add(1);
            self.answer(vec![Answer { done, outcome: Err(Refusal::StreamRefused { reason }) }]);
        }
    }

    /// Tells publishers that what they gave is not, or may not be, in the stream.
    fn give_up(&self, given_up: Vec<(Done, Fate)>, why: &dyn std::fmt::Display) {
        let answer = |(done, fate)| {
            let refusal = match fate {
                Fate::NotStored => Refusal::StreamAway { trouble: why.to_string() },
                Fate::Unknown => Refusal::StreamLate { waited_ms: self.publish_timeout.as_millis() as u64 },
            };
            Answer { done, outcome: Err(refusal) }
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
            None => match outbox.push(now, subject, data, done) {
                Ok(()) => {
                    self.metrics.nats_published.add(1);
                    None
                }
                Err(done) => {
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

/// Says what may go on and on: at once, and then no more often than [`SAY_EVERY`].
#[derive(Default)]
struct Repeated(Mutex<(u64, Option<Instant>)>);

impl Repeated {
    fn say(&self, count: u64, why: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (unsaid, last) = &mut *state;
        *unsaid += count;
        if last.is_none_or(|last| last.elapsed() >= SAY_EVERY) {
            tracing::warn!(count = *unsaid, "{why}");
            (*unsaid, *last) = (0, Some(Instant::now()));
        }
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
        Login::Credentials(secret("cluster.nats_credentials_file", &settings.nats_credentials_file)?)
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
    access.options().map_err(|error| super::ClusterError::File {
        key: "cluster.nats_credentials_file",
        file: file.clone(),
        error,
    })?;
    Ok(access)
}

/// The thread that will speak to NATS: made before cores are pinned, so that it may run on any.
pub(super) struct Thread {
    work: std::sync::mpsc::SyncSender<Work>,
    ended: watch::Receiver<bool>,
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
        node: u64,
        waiting_max: u32,
        subscribers: Arc<dyn InPlace>,
        metrics: Arc<ClusterMetrics>,
    ) -> Nats {
        let (answers, answered) = mpsc::unbounded_channel();
        let (control, followed) = mpsc::channel(BATCHES_MAX);
        let (stop, stopping) = watch::channel(false);
        let subjects = Subjects::new(&settings.nats_subjects);
        let shared = Arc::new(Shared {
            node,
            wanted: Wanted::new(settings, &subjects),
            wanted_name: settings.nats_stream.clone(),
            subjects,
            is_following: settings.role.subscribes(),
            publish_timeout: Duration::from_millis(settings.nats_publish_timeout_ms),
            outbox: Mutex::new(Outbox::new(settings.nats_in_flight_max, settings.nats_in_flight_bytes_max)),
            grown: Notify::new(),
            answers,
            epoch: AtomicU64::new(0),
            trouble: watch::Sender::new(Some((NOT_ASKED.into(), Instant::now()))),
            removals: Repeated::default(),
            refusals: Repeated::default(),
            silences: Repeated::default(),
            metrics,
        });
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
                    let trouble = shared.trouble.borrow().as_ref().map(|(text, _)| text.clone());
                    let trouble = trouble.unwrap_or_else(|| "the stream has no leader now".into());
                    shared.silences.say(late.len() as u64, "messages of publishers were not acknowledged in time: they were told so");
                    shared.give_up(late, &trouble);
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
