//! TCP listeners. What every client socket must have is set here, once: an accepted socket inherits it, so that taking a
//! client costs no setsockopt(2).
#![allow(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What client sockets inherit, and how many may wait to be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// SO_SNDBUF: bounds the kernel memory a client that does not read can pin, to about three times this. The kernel cuts
    /// it to net.core.wmem_max. 0 leaves the system's default, which is megabytes.
    pub send_buffer_bytes: usize,
    /// listen(2) backlog; the kernel cuts it to net.core.somaxconn.
    pub backlog: u32,
}

/// A bound, listening socket; closed when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

/// Why there is no listener, and who must do what.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another socket has the port.
    #[error(
        "{address} is taken: another process listens there; stop it (`ss -ltnp 'sport = :{}'` names it) or choose another \
         address under [[listen]]", address.port()
    )]
    Taken {
        /// Where we wanted to listen.
        address: SocketAddr,
    },
    /// No interface has this address.
    #[error("{address} is no address of this machine: correct it under [[listen]], or configure the interface first")]
    NotOurs {
        /// Where we wanted to listen.
        address: SocketAddr,
    },
    /// A port below net.ipv4.ip_unprivileged_port_start.
    #[error(
        "this user may not listen on {address}: choose a port from 1024 up, or grant CAP_NET_BIND_SERVICE to the process"
    )]
    Forbidden {
        /// Where we wanted to listen.
        address: SocketAddr,
    },
    /// Anything else, with the call that failed.
    #[error("cannot listen on {address}: {call}: {source}")]
    Other {
        /// Where we wanted to listen.
        address: SocketAddr,
        /// Which system call said so.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// Listens on `address` (port 0: the kernel chooses), IPv4 or IPv6. `[::]` takes IPv4 clients too unless
/// net.ipv6.bindv6only says otherwise.
///
/// # Errors
/// An [`ListenError`] inside an `io::Error` of the same kind.
pub fn listen(address: SocketAddr, options: ListenOptions) -> io::Result<Listener> {
    let failed = |call: &'static str| {
        let source = io::Error::last_os_error();
        let kind = source.kind();
        io::Error::new(
            kind,
            match kind {
                io::ErrorKind::AddrInUse => ListenError::Taken { address },
                io::ErrorKind::AddrNotAvailable => ListenError::NotOurs { address },
                io::ErrorKind::PermissionDenied => ListenError::Forbidden { address },
                _ => ListenError::Other { address, call, source },
            },
        )
    };
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(failed("socket(2)"));
    }
    // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
    let socket = TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // A restart must not wait for the old connections' TIME_WAIT; a second listener is refused all the same.
    set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).map_err(|()| failed("setsockopt(SO_REUSEADDR)"))?;
    // Coalescing is the tick's work: Nagle's algorithm would add up to a round trip to it.
    set(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).map_err(|()| failed("setsockopt(TCP_NODELAY)"))?;
    if options.send_buffer_bytes > 0 {
        let bytes = libc::c_int::try_from(options.send_buffer_bytes).unwrap_or(libc::c_int::MAX);
        set(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes).map_err(|()| failed("setsockopt(SO_SNDBUF)"))?;
    }
    bind(fd, address).map_err(|()| failed("bind(2)"))?;
    let backlog = libc::c_int::try_from(options.backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: no pointers.
    if unsafe { libc::listen(fd, backlog) } < 0 {
        return Err(failed("listen(2)"));
    }
    let address = socket.local_addr()?;
    Ok(Listener { socket, address })
}

impl Listener {
    /// Where it listens; the port is the real one if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// `Err`: errno says why.
fn set(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<(), ()> {
    // SAFETY: `value` is a readable int of the length given.
    let result = unsafe {
        libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t)
    };
    if result < 0 { Err(()) } else { Ok(()) }
}

/// `Err`: errno says why.
fn bind(fd: RawFd, address: SocketAddr) -> Result<(), ()> {
    let result = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `raw` is a whole sockaddr_in of the length given; the kernel only reads it, during the call.
            unsafe { libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as libc::socklen_t) }
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above, with a sockaddr_in6.
            unsafe { libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as libc::socklen_t) }
        }
    };
    if result < 0 { Err(()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: ListenOptions = ListenOptions { send_buffer_bytes: 65_536, backlog: 128 };

    #[test]
    fn a_taken_port_is_named_and_so_is_what_to_do() {
        let first = listen("127.0.0.1:0".parse().unwrap(), OPTIONS).unwrap();
        assert_ne!(first.local_addr().port(), 0);
        let error = listen(first.local_addr(), OPTIONS).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let text = error.to_string();
        assert!(text.contains(&first.local_addr().to_string()) && text.contains("another process"), "{text}");
    }

    #[test]
    fn an_address_of_another_machine_is_an_error_of_its_own() {
        let error = listen("192.0.2.1:0".parse().unwrap(), OPTIONS).unwrap_err();
        assert!(error.to_string().contains("no address of this machine"), "{error}");
    }

    #[test]
    fn a_port_is_free_again_as_soon_as_its_listener_is_dropped() {
        let first = listen("127.0.0.1:0".parse().unwrap(), OPTIONS).unwrap();
        let address = first.local_addr();
        // The accepting side closes first and so holds the port in TIME_WAIT, as after a restart under load.
        let client = std::net::TcpStream::connect(address).unwrap();
        drop(first.socket.accept().unwrap());
        drop((first, client));
        listen(address, OPTIONS).unwrap();
    }

    #[test]
    fn ipv6_listens_too() {
        let listener = listen("[::1]:0".parse().unwrap(), OPTIONS).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr()).unwrap();
        assert_eq!(listener.socket.accept().unwrap().1, client.local_addr().unwrap());
    }
}
