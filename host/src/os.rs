//! The real world: tokio's timers, the kernel's sockets, the system's clock and randomness.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::SystemTime,
};

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};

use crate::Host;

/// Socket buffers asked for, in bytes: a burst of 4 MB is some 30 ms at 1 Gbit/s.
const SOCKET_BUFFER: usize = 4 << 20;

/// The host that is this process. Must be used inside a tokio runtime.
#[derive(Debug, Default, Clone, Copy)]
pub struct OsHost;

impl Host for OsHost {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    #[allow(clippy::disallowed_methods)] // the one place that may ask
    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }

    fn bind_udp(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let socket = UdpSocket::bind(address)?;
        // The kernel clamps what it will not give (net.core.rmem_max); that costs bursts, not
        // correctness, so it is no error here. `probe_receive_buffer` lets services warn.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn seed(&self) -> [u8; 32] {
        rand::random()
    }
}

/// The receive buffer the kernel grants when asked for what the relay wants: (asked, granted) in
/// bytes.
///
/// # Errors
/// When no socket can be made.
pub fn probe_receive_buffer() -> io::Result<(usize, usize)> {
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER)?;
    // Linux reports twice what it grants, for its own bookkeeping (socket(7)).
    let granted = rustix::net::sockopt::socket_recv_buffer_size(&socket)? / 2;
    Ok((SOCKET_BUFFER, granted))
}
