//! What sockets are told: nothing waits to be sent, and a peer that is dead is noticed.

use super::limits::Limits;
use rustix::net::sockopt;
use std::io;
use tokio::net::TcpStream;

/// Without Nagle's delay; with keep-alive, so that the connection of a peer that was switched off ends.
pub(super) fn prepare(tcp: &TcpStream, limits: &Limits) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, limits.keepalive_idle)?;
    sockopt::set_tcp_keepintvl(tcp, limits.keepalive_interval)?;
    sockopt::set_tcp_keepcnt(tcp, limits.keepalive_probes)?;
    let user_timeout = u32::try_from(limits.tcp_user_timeout.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(tcp, user_timeout)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn dead_peers_are_noticed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let limits = Limits { keepalive_idle: Duration::from_secs(7), ..Limits::default() };
        prepare(&tcp, &limits).unwrap();
        assert!(tcp.nodelay().unwrap());
        assert!(sockopt::socket_keepalive(&tcp).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&tcp).unwrap(), Duration::from_secs(7));
        assert_eq!(sockopt::tcp_keepintvl(&tcp).unwrap(), limits.keepalive_interval);
        assert_eq!(sockopt::tcp_keepcnt(&tcp).unwrap(), limits.keepalive_probes);
        assert_eq!(u128::from(sockopt::tcp_user_timeout(&tcp).unwrap()), limits.tcp_user_timeout.as_millis());
    }
}
