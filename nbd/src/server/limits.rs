//! Limits of a server. Every one has a default that suits a node; [`Limits::check`] says what does not fit together.

use crate::proto::PAYLOAD_DEFAULT_BYTES_MAX;
use std::time::Duration;

/// What a server allows. Sizes in bytes, times as they say.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections in all, whatever they do. One more is closed at once. Default 1024.
    pub connections_max: usize,
    /// Connections of one identity in transmission. One more is refused with a message. Default 256.
    pub connections_per_peer_max: usize,
    /// Connections that have not come to transmission yet, and so may be anybody's. Default 64.
    pub negotiating_max: usize,
    /// The same from one address; over a unix socket there are no addresses. Default 16.
    pub negotiating_per_address_max: usize,

    /// From accept to transmission, TLS included. Default 30 s.
    pub negotiation_max: Duration,
    /// The TLS handshake alone. Default 10 s.
    pub tls_handshake_max: Duration,
    /// Options in one negotiation. Default 256.
    pub options_max: usize,
    /// Entries in the answer to LIST; what is beyond is left out. Default 10,000.
    pub list_entries_max: usize,

    /// How long a TCP connection may be silent before the other side is asked whether it lives. Default 30 s.
    pub keepalive_idle: Duration,
    /// Between two such questions. Default 10 s.
    pub keepalive_interval: Duration,
    /// Questions without an answer, after which the connection ends. Default 3.
    pub keepalive_probes: u32,
    /// How long data may lie unacknowledged before a TCP connection ends. Default 60 s.
    pub tcp_user_timeout: Duration,

    /// Requests of one connection that are read but not answered; with so many, reading stops. Default 128.
    pub requests_in_flight_max: usize,
    /// Largest payload of a read or write; told to clients. A longer read is refused, a write that is longer than this and
    /// than the protocol's own 32 MiB ends the connection. Default 32 MiB.
    pub request_bytes_max: u32,
    /// A longer read is answered in pieces of so much. Default 512 KiB.
    pub piece_bytes_max: u32,
    /// Payload of one connection in memory; at least [`Limits::request_bytes_max`]. Default 32 MiB.
    pub connection_bytes_max: u32,
    /// Payload of all connections in memory; at least [`Limits::connection_bytes_max`]. Default 128 MiB.
    pub total_bytes_max: u32,
    /// Extents in the answer to one block status request, per context. Default 16,384.
    pub status_extents_max: usize,

    /// How long a source may take, for one piece of a read; then the request fails and its future is dropped. Default 180 s.
    pub request_max: Duration,
    /// How long a message that has begun may take in either direction, besides the time that its bytes need at
    /// [`Limits::bytes_per_second_min`]. Default 30 s.
    pub stall_max: Duration,
    /// The slowest peer that is put up with while a message is under way. Default 64 KiB/s.
    pub bytes_per_second_min: u32,
    /// How long requests in flight may take to finish when a connection ends or the server stops. Default 10 s.
    pub drain_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            connections_per_peer_max: 256,
            negotiating_max: 64,
            negotiating_per_address_max: 16,
            negotiation_max: Duration::from_secs(30),
            tls_handshake_max: Duration::from_secs(10),
            options_max: 256,
            list_entries_max: 10_000,
            keepalive_idle: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(10),
            keepalive_probes: 3,
            tcp_user_timeout: Duration::from_secs(60),
            requests_in_flight_max: 128,
            request_bytes_max: PAYLOAD_DEFAULT_BYTES_MAX,
            piece_bytes_max: 512 << 10,
            connection_bytes_max: 32 << 20,
            total_bytes_max: 128 << 20,
            status_extents_max: 16 << 10,
            request_max: Duration::from_secs(180),
            stall_max: Duration::from_secs(30),
            bytes_per_second_min: 64 << 10,
            drain_max: Duration::from_secs(10),
        }
    }
}

/// Limits that do not fit together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("limits of the NBD server: {0}")]
pub struct LimitsError(&'static str);

/// The protocol asks for reads of this size without fragments.
const PIECE_BYTES_MIN: u32 = 64 << 10;

impl Limits {
    pub fn check(&self) -> Result<(), LimitsError> {
        let rules = [
            (self.connections_max > 0 && self.connections_per_peer_max > 0, "connections have to be allowed"),
            (self.negotiating_max > 0 && self.negotiating_per_address_max > 0, "negotiations have to be allowed"),
            (self.options_max > 0 && self.requests_in_flight_max > 0, "options and requests have to be allowed"),
            (
                self.piece_bytes_max >= PIECE_BYTES_MIN && self.piece_bytes_max.is_power_of_two(),
                "piece_bytes_max has to be a power of two of 64 KiB or more",
            ),
            (self.request_bytes_max >= self.piece_bytes_max, "request_bytes_max is below piece_bytes_max"),
            (self.connection_bytes_max >= self.request_bytes_max, "connection_bytes_max is below request_bytes_max"),
            (self.total_bytes_max >= self.connection_bytes_max, "total_bytes_max is below connection_bytes_max"),
            (
                (1..=crate::proto::STATUS_EXTENTS_MAX).contains(&self.status_extents_max),
                "status_extents_max has to be between 1 and what the protocol allows",
            ),
            (self.bytes_per_second_min > 0, "bytes_per_second_min has to be above 0"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(LimitsError(rule)))
    }

    /// How long a message of `bytes` may take once it has begun.
    pub(super) fn message_max(&self, bytes: usize) -> Duration {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.stall_max + Duration::from_secs(bytes / u64::from(self.bytes_per_second_min.max(1)))
    }
}
