//! A machine that refuses what the gateway needs: system calls by a seccomp filter, descriptors by a limit, output by a full disk or
//! a closed pipe. One sentence and exit code 78, or it serves all the same; never a panic.
#![allow(unsafe_code)]

use crate::client::Client;
use crate::gateway::{DEADLINE, Start, wait_until};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

/// Bare `serve` on free loopback ports.
fn serve() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire"));
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--grpc-address",
        "127.0.0.1:0",
        "--http-address",
        "127.0.0.1:0",
    ]);
    command.args(["--shards", "2", "--set", "shards.pin=false"]);
    command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Lets every call of `system_call` fail with `errno`, in the child alone.
pub fn refusing(mut command: Command, system_call: libc::c_long, errno: libc::c_int) -> Command {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the call is the first word of what the filter is shown.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, system_call as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        let (one, none) = (1 as libc::c_ulong, 0 as libc::c_ulong);
        // SAFETY: prctl(2) takes plain numbers here and reads `program` and `filter`, which outlive the calls.
        unsafe {
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, none, none, none) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER as libc::c_ulong, &raw const program)
                    != 0
            {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(install) };
    command
}

/// Lets the child lock `bytes` of memory, and takes away the right to lock more.
fn locking(mut command: Command, bytes: u64) -> Command {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    let limit = move || {
        let most = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: prctl(2) takes plain numbers here, and setrlimit(2) reads `most`.
        unsafe {
            // An ordinary user lacks it, and may not drop it.
            let dropped = libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK);
            if (dropped != 0 && libc::geteuid() == 0) || libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const most) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(limit) };
    command
}

/// It ends with 78 and one line, which is returned.
fn sentence(mut command: Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "one sentence, no backtrace: {stderr}");
    assert!(!stdout.contains("ws://"), "it told an address before it failed: {stdout}");
    stderr.into_owned()
}

#[test]
fn refused_io_uring_is_said_in_one_sentence_with_exit_code_78() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let said = sentence(refusing(serve(), libc::SYS_io_uring_setup, errno));
        for part in ["io_uring is not available", "Linux 6.1", "kernel.io_uring_disabled", "seccomp"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn a_kernel_that_is_too_old_is_told_by_what_it_lacks() {
    let said = sentence(refusing(serve(), libc::SYS_io_uring_setup, libc::EINVAL));
    assert!(said.contains("DEFER_TASKRUN") && said.contains("Linux 6.1"), "{said}");
    let said = sentence(refusing(serve(), libc::SYS_io_uring_register, libc::EINVAL));
    assert!(said.contains("sparse file tables") && said.contains("Linux 6.1"), "{said}");
}

#[test]
fn whatever_else_is_refused_is_named_and_so_is_the_remedy() {
    for (call, errno, what, remedy) in [
        (libc::SYS_io_uring_setup, libc::EMFILE, "ring", "RLIMIT_NOFILE"),
        (libc::SYS_io_uring_setup, libc::ENOMEM, "ring", "memory limit"),
        (libc::SYS_eventfd2, libc::EMFILE, "eventfd", "RLIMIT_NOFILE"),
        (libc::SYS_epoll_create1, libc::EMFILE, "control core", "RLIMIT_NOFILE"),
        (libc::SYS_clone3, libc::EAGAIN, "thread", "TasksMax"),
        (libc::SYS_clone3, libc::EPERM, "thread", "seccomp"),
    ] {
        let said = sentence(refusing(serve(), call, errno));
        assert!(said.contains(what) && said.contains(remedy), "{what}, {remedy}: {said}");
    }
}

#[test]
fn a_user_who_may_lock_no_memory_is_told_how_much_it_takes() {
    let said = sentence(locking(serve(), 16_384));
    assert!(said.contains("ring") && said.contains("LimitMEMLOCK="), "{said}");
}

#[test]
fn where_memory_is_short_a_smaller_ring_serves_and_says_so() {
    // How much the rest of its rings takes differs from kernel to kernel: less and less, until it is a shard's that is smaller.
    let serving = (80..400).rev().step_by(8).find_map(|kib| {
        let start = Start::new().set("shards.count", "1").under(|command| locking(command, kib * 1024));
        match start.try_start() {
            Ok(gateway) => {
                wait_until("it is ready", || gateway.stderr().contains("ready"));
                gateway.stderr().contains("a smaller one serves").then_some(gateway)
            }
            Err(ended) => {
                assert!(ended.stderr.contains("LimitMEMLOCK="), "{ended:?}");
                None
            }
        }
    });
    let gateway = serving.expect("there is a limit that a smaller ring fits in");
    wait_until("it is said", || gateway.stderr().contains("a smaller one serves"));
    let mut clients: Vec<_> = (0..200).map(|_| Client::subscriber(&gateway, &["t"])).collect();
    for n in 0..50 {
        gateway.push("t", &n.to_string());
    }
    for client in &mut clients {
        (0..50).for_each(|n| assert_eq!(client.text(), n.to_string()));
    }
}

/// Until it serves: its sockets listen before, but only then it has all it needs.
fn is_served(child: &mut Child, log: impl Fn() -> String) {
    wait_until("it serves", || {
        assert_eq!(child.try_wait().unwrap(), None, "{}", log());
        log().contains("ready")
    });
}

fn ends(mut child: Child) -> ExitStatus {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let end = std::time::Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if std::time::Instant::now() > end {
            child.kill().unwrap();
            panic!("it did not end: {:?}", child.wait());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_closed_or_full_stdout_does_not_keep_it_from_serving() {
    let (reader, closed) = io::pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for stdout in [Stdio::from(closed), Stdio::from(full)] {
        let path = std::env::temp_dir().join(format!("fanwire-denied-{}.log", std::process::id()));
        let mut child = serve().stdout(stdout).stderr(File::create(&path).unwrap()).spawn().unwrap();
        is_served(&mut child, || std::fs::read_to_string(&path).unwrap());
        let status = ends(child);
        let log = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("nobody reads stdout"), "{log}");
    }
}

#[test]
fn logs_that_can_not_be_written_are_lost_and_nothing_else() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let mut child = serve().args(["--log-level", "trace"]).stderr(full()).spawn().unwrap();
    let mut stdout = io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("HTTP publish ") {
        line.clear();
        assert_ne!(io::BufRead::read_line(&mut stdout, &mut line).unwrap(), 0, "it ended: {:?}", child.wait());
    }
    let address = line.split_once("http://").unwrap().1.split(' ').next().unwrap().to_owned();
    let ready = crate::http::request(address.parse().unwrap(), "GET", "/readyz", &[], b"");
    assert_eq!(ready.status, 200, "{ready:?}");
    assert_eq!(ends(child).code(), Some(0));
    // And the exit code survives where the sentence does not.
    let status = serve().args(["--set", "shards.count=many"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(78));
}
