//! Real servers of NATS with JetStream on free loopback ports: started, killed, started again with what they have on disk.

use crate::etcd::port;
use crate::gateway::{wait_for, wait_until};
use crate::lab::Place;
use async_nats::{Client, HeaderMap};
use serde_json::{Value, json};
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// One server, which may or may not run now.
pub struct Nats {
    directory: PathBuf,
    port: u16,
    configuration: String,
    /// In which network, if it has one of its own.
    place: Option<Place>,
    child: Option<Child>,
    runtime: tokio::runtime::Runtime,
}

impl Nats {
    /// Not running yet; its address is known. `more` lines of configuration.
    pub fn prepared(more: &str) -> Nats {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("fanwire-nats-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        Nats::at(directory, &format!("n{number}"), port(), more)
    }

    /// The same on the loopback of a network of its own, with its data in `directory`.
    pub fn within(place: &Place, directory: PathBuf) -> Nats {
        std::fs::create_dir_all(&directory).unwrap();
        let mut nats = Nats::at(directory, "n", 4222, "");
        nats.place = Some(place.clone());
        nats
    }

    fn at(directory: PathBuf, name: &str, port: u16, more: &str) -> Nats {
        let configuration = format!(
            "server_name: {name}\nlisten: 127.0.0.1:{port}\njetstream: {{ store_dir: {:?} }}\n{more}\n",
            directory.display()
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Nats { directory, port, configuration, place: None, child: None, runtime }
    }

    /// Running, and answering.
    pub fn start() -> Nats {
        let mut nats = Nats::prepared("");
        nats.run();
        nats
    }

    /// Three that are one cluster, and have elected a leader.
    pub fn three() -> [Nats; 3] {
        let routes = [(); 3].map(|()| port());
        let all = routes.map(|port| format!("\"nats://127.0.0.1:{port}\"")).join(", ");
        let mut three = routes.map(|port| {
            Nats::prepared(&format!("cluster: {{ name: c, listen: \"127.0.0.1:{port}\", routes: [{all}] }}"))
        });
        three.iter_mut().for_each(Nats::spawn);
        for one in &three {
            wait_until("JetStream has a leader", || one.api("INFO", &Value::Null).is_some());
        }
        three
    }

    /// Where clients connect.
    pub fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A file in its directory, which goes with it.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Starts it, with what it had when it ended.
    pub fn spawn(&mut self) {
        let configuration = self.file("nats.conf", &self.configuration);
        let mut command = Command::new("nats-server");
        // Debian has it where only root looks.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin")).args(["-c", &configuration]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = self.there(|| command.spawn().expect("nats-server is installed (scripts/install-tools nats)"));
        self.child = Some(child);
    }

    /// Does `work` where it is.
    fn there<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.place {
            None => work(),
            Some(place) => place.inside(work),
        }
    }

    /// Starts it and waits until it answers.
    pub fn run(&mut self) {
        self.spawn();
        self.there(|| wait_until("JetStream answers", || self.api("INFO", &Value::Null).is_some()));
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops it from turning, or lets it go on.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
        if name == "STOP" {
            wait_until("all of it stands still", || {
                let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
                let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat")).unwrap();
                threads.flatten().all(|thread| stat(thread).rsplit(')').next().unwrap().trim_start().starts_with('T'))
            });
        }
    }

    /// Keeps what it has on disk now, while it does not run.
    pub fn keep(&self) {
        copy(&self.directory, &self.kept());
    }

    /// Has that on disk again, and nothing else.
    pub fn restore(&self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
        copy(&self.kept(), &self.directory);
    }

    fn kept(&self) -> PathBuf {
        self.directory.with_extension("kept")
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// A client of it.
    pub fn client(&self) -> Option<Client> {
        let options = async_nats::ConnectOptions::new().connection_timeout(Duration::from_secs(2));
        self.block_on(options.connect(self.address())).ok()
    }

    /// What JetStream answers, if it does, and does not refuse.
    pub fn api(&self, what: &str, argument: &Value) -> Option<Value> {
        let client = self.client()?;
        let payload = if argument.is_null() { String::new() } else { argument.to_string() };
        let answer = self.block_on(async {
            let request = client.request(format!("$JS.API.{what}"), payload.into());
            tokio::time::timeout(Duration::from_secs(2), request).await
        });
        let value: Value = serde_json::from_slice(&answer.ok()?.ok()?.payload).unwrap();
        value["error"].is_null().then_some(value)
    }

    /// The stream of the nodes.
    pub fn stream(&self) -> Value {
        wait_for("the stream is there", || self.api("STREAM.INFO.FANWIRE", &Value::Null))
    }

    /// Which of `servers` leads the stream.
    pub fn leader(servers: &[Nats]) -> usize {
        wait_for("the stream has a leader", || {
            let running = servers.iter().filter(|nats| nats.child.is_some());
            let info = running.filter_map(|nats| nats.api("STREAM.INFO.FANWIRE", &Value::Null)).next()?;
            let leader = info["cluster"]["leader"].as_str()?;
            servers.iter().position(|nats| nats.configuration.starts_with(&format!("server_name: {leader}\n")))
        })
    }

    /// Deletes the stream.
    pub fn delete_stream(&self) {
        assert!(self.api("STREAM.DELETE.FANWIRE", &Value::Null).is_some());
    }

    /// Publishes straight to a subject; the answer of JetStream.
    pub fn publish(&self, subject: &str, headers: &[(&str, &str)], data: &str) -> Value {
        let client = self.client().expect("NATS answers");
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let request = client.request_with_headers(subject.to_owned(), map, data.to_owned().into());
        serde_json::from_slice(&self.block_on(request).unwrap().payload).unwrap()
    }

    /// Publishes a header block as it stands, which no client would make; returns when the server has it.
    pub fn publish_raw(&self, subject: &str, header: &[u8], data: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let (headers, total) = (header.len(), header.len() + data.len());
        let mut text = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
        text.extend(format!("HPUB {subject} {headers} {total}\r\n").bytes());
        text.extend([header, data.as_bytes(), b"\r\nPING\r\n"].concat());
        stream.write_all(&text).unwrap();
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        let answer = lines.find(|line| line.starts_with("PONG") || line.starts_with("-ERR"));
        assert_eq!(answer.as_deref(), Some("PONG"));
    }

    /// A stream of somebody else's.
    pub fn create_stream(&self, name: &str, subjects: &[&str]) {
        let config = json!({ "name": name, "subjects": subjects, "retention": "limits", "storage": "memory", "num_replicas": 1 });
        assert!(self.api(&format!("STREAM.CREATE.{name}"), &config).is_some());
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_dir_all(self.kept());
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}
