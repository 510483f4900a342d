//! Behind the proxies people put in front, with the very files of `tuning/proxy`: nginx and HAProxy as Debian has them.

use crate::client::{Client, GREETING, upgrade};
use crate::gateway::{Gateway, wait_for, wait_until};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A proxy of ours, ended with its test.
struct Proxy {
    child: Child,
    folder: PathBuf,
    address: SocketAddr,
}

impl Proxy {
    /// Starts `command` with a copy of `tuning/proxy/FILE` in which every pair of `changes` is replaced once.
    fn start(
        file: &str,
        changes: &[(&str, String)],
        address: SocketAddr,
        command: impl FnOnce(&PathBuf) -> Command,
    ) -> Proxy {
        let mut text =
            std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tuning/proxy").join(file)).unwrap();
        for (from, to) in changes {
            // In what is in force, not in what is said about it.
            let lines: Vec<_> = text
                .lines()
                .map(|line| if line.trim_start().starts_with('#') { line.to_owned() } else { line.replace(from, to) })
                .collect();
            let changed = lines.join("\n") + "\n";
            assert_ne!(changed, text, "no {from:?} in {file}");
            text = changed;
        }
        let folder = std::env::temp_dir().join(format!("fanwire-{file}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(file), text).unwrap();
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let child = command(&folder)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{file}: {e}: install it by `scripts/install-tools proxies`"));
        let mut proxy = Proxy { child, folder, address };
        wait_for("the proxy listens", || {
            let ended = proxy.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", proxy.log());
            TcpStream::connect(address).ok()
        });
        proxy
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the proxy's log ---\n{}---", self.log());
        }
        // TERM lets nginx take its worker along.
        let _ = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).status();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A handshake from a loopback address of our choice: its status, the connection, and where it came from.
fn handshake(from: &str, to: SocketAddr, path: &str, more: &str) -> (u16, Client, SocketAddr) {
    let mut client = Client::dial_from(from.parse::<IpAddr>().unwrap(), to);
    client.write(upgrade(path, more).as_bytes());
    let (status, address) = (client.response().status, client.local_address());
    (status, client, address)
}

/// WebSocket passes, in both directions; the cap of two is on the client's own address; the log names it.
fn serves_and_tells_clients_apart(gateway: &Gateway, proxy: &Proxy, path: &str, knows_ports: bool) {
    let (status, mut client, address) = handshake("127.0.0.2", proxy.address, path, "X-Forwarded-For: 6.6.6.6\r\n");
    assert_eq!((status, client.text()), (101, GREETING.to_owned()));
    client.subscribe("t");
    gateway.push("t", "through");
    assert_eq!(client.text(), "through");
    client.ping();
    let named = if knows_ports { address.to_string() } else { "127.0.0.2:0".to_owned() };
    wait_until("the log names the client", || gateway.stderr().contains(&named));
    assert!(!gateway.stderr().contains("6.6.6.6"), "{}", gateway.stderr());

    let second = handshake("127.0.0.2", proxy.address, path, "");
    assert_eq!(second.0, 101);
    assert_eq!(handshake("127.0.0.2", proxy.address, path, "").0, 503, "a third from one address");
    let others: Vec<_> = ["127.0.0.3", "127.0.0.4"].map(|from| handshake(from, proxy.address, path, "")).into();
    assert!(others.iter().all(|(status, ..)| *status == 101), "others are others, though one proxy brings them all");
    drop(second);
    wait_until("its place is free again", || handshake("127.0.0.2", proxy.address, path, "").0 == 101);
    assert!(gateway.metrics().sum("fanwire_connections_refused_total", &[("reason", "address")]) >= 1.0);

    // A page of the site's own host may connect, another's not: the proxy passes the Host on.
    let origin = |origin: &str| handshake("127.0.0.5", proxy.address, path, &format!("Origin: {origin}\r\n")).0;
    assert_eq!((origin("https://localhost"), origin("https://elsewhere.example")), (101, 403));
}

fn gateway(settings: &[(&str, &str)]) -> Gateway {
    let common = [
        ("limits.connections_per_address_max", "2"),
        ("listen.0.trusted_proxies", "127.0.0.1"),
        ("listen.0.allowed_origins", ""),
        ("log.level", "debug"),
    ];
    Gateway::start(&[&common, settings].concat())
}

#[test]
fn nginx_passes_websocket_under_its_prefix_and_names_the_client() {
    let gateway = gateway(&[("listen.0.path_prefix", "/push"), ("listen.0.client_address_header", "x-forwarded-for")]);
    let address = free_address();
    let changes = [("listen 80;", format!("listen {address};")), ("127.0.0.1:9992", gateway.subscribers.to_string())];
    let proxy = Proxy::start("nginx.conf", &changes, address, |folder| {
        let folder = folder.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary.map(|name| format!("{name}_temp_path {folder}/{name};\n")).concat();
        let main = format!(
            "daemon off; pid {folder}/pid; worker_processes 1; error_log stderr;\nevents {{ worker_connections 256; }}\n\
             http {{ access_log off;\n{temporary}include {folder}/nginx.conf; }}\n"
        );
        std::fs::write(format!("{folder}/main.conf"), main).unwrap();
        let mut command = Command::new("nginx");
        command.args(["-e", "stderr", "-c", &format!("{folder}/main.conf"), "-p", &folder.to_string()]);
        command
    });
    serves_and_tells_clients_apart(&gateway, &proxy, "/push/ws", false);
    let stats = crate::http::request(proxy.address, "GET", "/push/stats", &[], &[]);
    assert!(stats.status == 200 && stats.body.starts_with(r#"{"count":"#), "{stats:?}");
    assert_eq!(crate::http::request(proxy.address, "GET", "/stats", &[], &[]).status, 404, "nginx's own");
}

#[test]
fn haproxy_names_the_client_by_the_proxy_protocol_and_its_checks_count_for_nobody() {
    let gateway = gateway(&[("listen.0.proxy_protocol", "true")]);
    let address = free_address();
    let changes = [("bind :80", format!("bind {address}")), ("127.0.0.1:9992", gateway.subscribers.to_string())];
    let proxy = Proxy::start("haproxy.cfg", &changes, address, |folder| {
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(folder.join("haproxy.cfg"));
        command
    });
    wait_until("HAProxy has looked at the gateway", || gateway.metrics().sum("fanwire_pages_total", &[]) >= 1.0);
    serves_and_tells_clients_apart(&gateway, &proxy, "/ws", true);
    assert_eq!(gateway.metrics().sum("fanwire_proxy_headers_refused_total", &[]), 0.0);
    // Whoever goes around HAProxy from its own address has no header, and is cut.
    let mut around = Client::dial(gateway.subscribers);
    around.write(upgrade("/ws", "").as_bytes());
    assert_eq!(around.ends(), []);
    assert_eq!(gateway.metrics().sum("fanwire_proxy_headers_refused_total", &[]), 1.0);
}
