//! The table, on a clock of our own: courses of events that are hard to bring about with real connections, and many
//! random ones.

use super::Rng;
use crate::client::config::{Address, Config, Endpoint, fixed};
use crate::client::reply::{Asked, Failure, Outcome};
use crate::client::state::Tallies;
use crate::client::table::{Ended, Heard, Lost, Order, Part, Peer, Plan, Reply, Table};
use crate::client::{Error, Extent, ExtentKind, State};
use crate::proto::{Command, ErrorCode, Request, Style};
use bytes::Bytes;
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

const SIZE: u64 = 16 << 20;
const SECOND: Duration = Duration::from_secs(1);

fn content(range: Range<u64>) -> Bytes {
    static ALL: LazyLock<Bytes> = LazyLock::new(|| (0..SIZE / 8).flat_map(|n| Rng(n).next().to_le_bytes()).collect());
    ALL.slice(range.start as usize..range.end as usize)
}

struct Wire {
    id: u64,
    orders: mpsc::UnboundedReceiver<Order>,
    heard: Heard,
}

struct Rig {
    table: Table,
    tallies: Arc<Tallies>,
    now: Instant,
}

fn config() -> Config {
    let endpoint = Endpoint { address: Address::Unix("/nowhere".into()), identity: None };
    Config { readahead_bytes: 0, ..Config::new("x", fixed(endpoint)) }
}

fn peer() -> Peer {
    Peer {
        address: Address::Unix("/nowhere".into()),
        style: Style::Extended,
        size: SIZE,
        block: 1,
        payload_max: 32 << 20,
        context: Some(1),
        multi: true,
    }
}

impl Rig {
    fn new(config: Config) -> Rig {
        let now = Instant::now();
        let tallies = Arc::new(Tallies::default());
        Rig { table: Table::new(config, tallies.clone(), 1, now), tallies, now }
    }

    fn up(&mut self) -> Wire {
        self.up_with(peer())
    }

    fn up_with(&mut self, peer: Peer) -> Wire {
        let (orders, coming) = mpsc::unbounded_channel();
        let (id, heard) = self.table.link_up(peer, orders, self.now);
        Wire { id, orders: coming, heard }
    }

    fn down(&mut self, wire: &Wire) {
        self.table.link_down(wire.id, Ended::Lost("reset".into()), self.now);
    }

    fn read(&mut self, off: u64, len: u64) -> oneshot::Receiver<Reply> {
        let parts = self.table.read(off..off + len, self.now + 60 * SECOND, self.now).unwrap();
        match parts.into_iter().next() {
            Some(Part::Coming(coming)) => coming,
            _ => panic!("not a request"),
        }
    }

    /// The first small read in a place, which is not enlarged.
    fn first_in(&mut self, wire: &mut Wire, off: u64) {
        let mut read = self.read(off, 1);
        let request = wire.ask();
        assert_eq!(request.length, 1);
        self.answer(wire, &request);
        assert_eq!(data(&mut read).len(), 1);
    }

    /// Time passes.
    fn later(&mut self, by: Duration) -> Plan {
        self.now += by;
        self.table.tick(self.now)
    }

    /// Time passes, and the link has just said something.
    fn later_heard(&mut self, by: Duration, wires: &[&Wire]) -> Plan {
        self.now += by;
        for wire in wires {
            wire.heard.set(self.now);
        }
        self.table.tick(self.now)
    }

    fn answer(&mut self, wire: &Wire, request: &Request) {
        let Some(asked) = self.table.asked(wire.id, request.cookie) else { panic!("not asked") };
        let outcome = match asked {
            Asked::Data(range) => {
                assert_eq!((range.start, range.end - range.start), (request.offset, request.length));
                Outcome::Data(content(range))
            }
            Asked::Status { range, .. } => {
                Outcome::Extents(vec![Extent { len: range.end - range.start, kind: ExtentKind::Hole }])
            }
        };
        wire.heard.set(self.now);
        assert_eq!(self.table.answered(wire.id, request.cookie, outcome, self.now), None);
    }

    fn refuse(&mut self, wire: &Wire, request: &Request, offset: u64) {
        let failure = Failure { code: ErrorCode::EIO, message: "bad".into(), offset };
        assert_eq!(self.table.answered(wire.id, request.cookie, Outcome::Failed(failure), self.now), None);
    }

    fn state(&self) -> State {
        self.table.state()
    }
}

impl Wire {
    fn asks(&mut self) -> Vec<Request> {
        std::iter::from_fn(|| self.orders.try_recv().ok())
            .map(|order| match order {
                Order::Ask(request) => request,
                Order::Close => panic!("closed"),
            })
            .collect()
    }

    fn ask(&mut self) -> Request {
        let asks = self.asks();
        assert_eq!(asks.len(), 1, "{asks:?}");
        asks[0]
    }
}

fn data(coming: &mut oneshot::Receiver<Reply>) -> Bytes {
    match coming.try_recv() {
        Ok(Ok(Outcome::Data(data))) => data,
        other => panic!("{other:?}"),
    }
}

fn error(coming: &mut oneshot::Receiver<Reply>) -> Error {
    match coming.try_recv() {
        Ok(Err(Lost::Error(error))) => error,
        other => panic!("{other:?}"),
    }
}

fn waits(coming: &mut oneshot::Receiver<Reply>) -> bool {
    matches!(coming.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

#[test]
fn a_request_waits_for_a_connection_and_survives_its_death() {
    let mut rig = Rig::new(config());
    let mut read = rig.read(4096, 512);
    assert!(rig.later(Duration::ZERO).dial);
    assert_eq!(rig.state(), State::Connecting);
    let mut first = rig.up();
    assert_eq!(first.ask().offset, 4096);
    assert_eq!(rig.state(), State::Connected { connections: 1 });
    rig.down(&first);
    assert!(matches!(rig.state(), State::Away { reason, .. } if reason.contains("reset")));
    assert!(waits(&mut read));
    let mut second = rig.up();
    let request = second.ask();
    rig.answer(&second, &request);
    assert_eq!(data(&mut read), content(4096..4608));
    assert_eq!(rig.tallies.read().retries, 1);
}

#[test]
fn what_a_dead_connection_owed_keeps_its_order_and_goes_first() {
    let mut rig = Rig::new(Config { requests: 4, ..config() });
    let mut first = rig.up();
    let reads: Vec<_> = (0..6).map(|n| rig.read(n * 512, 512)).collect();
    assert_eq!(first.asks().len(), 4, "no more than the limit");
    rig.down(&first);
    let mut second = rig.up();
    let again: Vec<u64> = second.asks().iter().map(|request| request.offset / 512).collect();
    assert_eq!(again, [0, 1, 2, 3]);
    drop(reads);
    rig.down(&second);
    assert!(rig.up().asks().is_empty(), "nobody waits any more");
}

#[test]
fn a_request_that_kills_the_server_is_in_nobodys_way() {
    let mut rig = Rig::new(config());
    let mut deadly = rig.read(0, 512);
    let mut others: Vec<_> = (1..6).map(|n| rig.read(n * 512, 512)).collect();
    for _ in 0..5 {
        // It answers in order.
        let mut wire = rig.up();
        for request in wire.asks() {
            if request.offset == 0 {
                break;
            }
            rig.answer(&wire, &request);
        }
        rig.down(&wire);
    }
    for (n, other) in (1..).zip(&mut others) {
        assert_eq!(data(other), content(n * 512..(n + 1) * 512));
    }
    assert!(waits(&mut deadly));
}

#[test]
fn a_deadline_is_kept_to_and_says_why() {
    let mut rig = Rig::new(config());
    let mut read = rig.read(0, 512);
    rig.table.dial_failed(Some(Address::Unix("/a".into())), "connection refused".into(), false, rig.now);
    let plan = rig.later(59 * SECOND);
    assert!(plan.next.unwrap() <= rig.now + SECOND, "{plan:?}");
    assert!(waits(&mut read));
    rig.later(SECOND);
    let text = error(&mut read).to_string();
    assert!(
        text.contains("within 60.0 s") && text.contains("away for 60.0 s") && text.contains("/a: connection refused")
    );
    assert_eq!(rig.tallies.read().timeouts, 1);
}

#[test]
fn a_silent_connection_is_suspect_and_the_first_answer_counts() {
    let mut rig = Rig::new(config());
    let mut silent = rig.up();
    let mut read = rig.read(0, 512);
    let asked = silent.ask();
    let plan = rig.later(4 * SECOND);
    assert!(!plan.dial && plan.next.unwrap() <= rig.now + SECOND);
    assert!(rig.later(SECOND).dial, "another connection is wanted");
    assert!(matches!(rig.state(), State::Away { .. }));
    let mut other = rig.up();
    let again = other.ask();
    // The silent one answers after all.
    rig.answer(&silent, &asked);
    assert_eq!(data(&mut read), content(0..512));
    assert_eq!(rig.state(), State::Connected { connections: 2 });
    // The second answer is of no use, and does no harm.
    rig.answer(&other, &again);
    rig.later(20 * SECOND);
    assert_eq!(rig.state(), State::Connected { connections: 2 });
}

#[test]
fn a_connection_that_stays_silent_is_given_up() {
    let mut rig = Rig::new(config());
    let mut silent = rig.up();
    let mut read = rig.read(0, 512);
    silent.ask();
    rig.later(5 * SECOND);
    rig.later(10 * SECOND);
    assert!(silent.orders.is_closed());
    let mut other = rig.up();
    let again = other.ask();
    rig.answer(&other, &again);
    assert_eq!(data(&mut read), content(0..512));
}

#[test]
fn bytes_that_trickle_in_are_no_silence() {
    let mut rig = Rig::new(config());
    let mut slow = rig.up();
    let mut reads: Vec<_> = (0..4).map(|n| rig.read(n << 20, 1 << 20)).collect();
    let asks = slow.asks();
    for _ in 0..12 {
        rig.later_heard(4 * SECOND, &[&slow]);
        assert_eq!(rig.state(), State::Connected { connections: 1 });
    }
    for (request, read) in asks.iter().zip(&mut reads) {
        rig.answer(&slow, request);
        assert_eq!(data(read).len(), 1 << 20);
    }
    assert_eq!(rig.tallies.read().retries, 0);
}

#[test]
fn a_silent_connection_full_of_requests_is_in_nobodys_way() {
    let mut rig = Rig::new(Config { bytes: 4 << 20, ..config() });
    let mut silent = rig.up();
    let mut reads: Vec<_> = (0..8).map(|n| rig.read(n << 20, 1 << 20)).collect();
    assert_eq!(silent.asks().len(), 4, "bytes in flight are limited");
    rig.later(5 * SECOND);
    let mut other = rig.up();
    for _ in 0..8 {
        for request in other.asks() {
            rig.answer(&other, &request);
        }
    }
    for (n, read) in reads.iter_mut().enumerate() {
        let start = (n as u64) << 20;
        assert_eq!(data(read), content(start..start + (1 << 20)));
    }
}

#[test]
fn a_request_that_is_passed_over_is_asked_elsewhere() {
    let mut rig = Rig::new(config());
    let mut first = rig.up();
    let mut forgotten = rig.read(0, 512);
    first.ask();
    for n in 1..8 {
        let mut read = rig.read(n * 512, 512);
        rig.later_heard(SECOND, &[&first]);
        let request = first.ask();
        rig.answer(&first, &request);
        data(&mut read);
    }
    // It owes only what it has passed over; it is to speak, as others do.
    let mut second = rig.up();
    let plan = rig.later_heard(Duration::ZERO, &[&first]);
    let again = second.ask();
    assert_eq!((again.offset, plan.dial), (0, false));
    rig.answer(&second, &again);
    assert_eq!(data(&mut forgotten), content(0..512));
}

#[test]
fn a_slow_request_is_not_doubled_while_those_before_it_come_in() {
    let mut rig = Rig::new(config());
    let (mut first, mut second) = (rig.up(), rig.up());
    let _reads: Vec<_> = (0..8).map(|n| rig.read(n << 20, 1 << 20)).collect();
    let (one, two) = (first.asks(), second.asks());
    for n in 0..3 {
        rig.later_heard(4 * SECOND, &[&first, &second]);
        rig.answer(&first, &one[n]);
        rig.answer(&second, &two[n]);
    }
    assert!(first.asks().is_empty() && second.asks().is_empty());
    assert_eq!(rig.tallies.read().retries, 0);
}

#[test]
fn an_error_in_what_was_read_ahead_hurts_only_whom_it_concerns() {
    let mut rig = Rig::new(Config { readahead_bytes: 65536, ..config() });
    let mut wire = rig.up();
    rig.first_in(&mut wire, 70_000);
    let (mut good, mut bad) = (rig.read(70_000, 100), rig.read(100_000, 100));
    let whole = wire.ask();
    assert_eq!((whole.offset, whole.length), (65536, 65536), "two reads, one request");
    rig.refuse(&wire, &whole, 100_050);
    let asks = wire.asks();
    assert_eq!(asks.iter().map(|ask| (ask.offset, ask.length)).collect::<Vec<_>>(), [(70_000, 100), (100_000, 100)]);
    rig.answer(&wire, &asks[0]);
    rig.refuse(&wire, &asks[1], 100_050);
    assert_eq!(data(&mut good), content(70_000..70_100));
    assert!(matches!(error(&mut bad), Error::Server { off: 100_050, code: ErrorCode::EIO, .. }));
}

#[test]
fn what_was_read_ahead_serves_others_and_is_given_back() {
    let mut rig = Rig::new(Config { readahead_bytes: 65536, ..config() });
    let mut wire = rig.up();
    rig.first_in(&mut wire, 0);
    let mut read = rig.read(10, 10);
    let request = wire.ask();
    assert_eq!(request.length, 65536);
    rig.answer(&wire, &request);
    assert_eq!(data(&mut read), content(10..20));
    let parts = rig.table.read(1000..3000, rig.now + SECOND, rig.now).unwrap();
    assert!(matches!(&parts[..], [Part::Here(bytes)] if *bytes == content(1000..3000)));
    rig.later(6 * SECOND);
    rig.read(1000, 2000);
    assert_eq!(wire.ask().offset, 0);
}

#[test]
fn only_reads_near_others_are_enlarged() {
    let mut rig = Rig::new(Config { readahead_bytes: 65536, ..config() });
    let mut wire = rig.up();
    let mut length = |off, len| {
        drop(rig.read(off, len));
        wire.ask().length
    };
    for unit in [100u64, 7, 50, 3, 99, 1] {
        assert_eq!(length(unit * 65536 + 300, 4096), 4096, "all over the place");
    }
    assert_eq!(length(51 * 65536 + 300, 4096), 65536, "the one behind it");
    assert_eq!(length(3 * 65536 + 3000, 4096), 65536, "the same");
    assert_eq!(length(8 * 65536, 65536), 65536, "large enough");
    assert_eq!(length(9 * 65536, 512), 512, "large ones do not count");
}

#[test]
fn broken_answers_end_with_an_error_after_the_third() {
    let mut rig = Rig::new(config());
    let mut read = rig.read(512, 512);
    for n in 1..=3 {
        let mut wire = rig.up();
        let request = wire.ask();
        rig.table.violated(wire.id, request.cookie, "too long");
        rig.table.link_down(wire.id, Ended::Broke("too long".into()), rig.now);
        assert_eq!(waits(&mut read), n < 3);
    }
    let closed = read.try_recv().is_err();
    assert!(closed, "one answer only");
    assert_eq!(rig.tallies.read().violations, 3);
    let plan = rig.later(Duration::ZERO);
    assert!(!plan.dial && plan.next.unwrap() > rig.now, "a liar is not asked at once again: {plan:?}");
}

#[test]
fn a_server_that_shuts_down_is_away() {
    let mut rig = Rig::new(config());
    let mut read = rig.read(0, 512);
    let mut wire = rig.up();
    let request = wire.ask();
    let failure = Failure { code: ErrorCode::ESHUTDOWN, message: String::new(), offset: 0 };
    let ended = rig.table.answered(wire.id, request.cookie, Outcome::Failed(failure), rig.now);
    assert_eq!(ended, Some(Ended::ShutDown));
    rig.table.link_down(wire.id, Ended::ShutDown, rig.now);
    assert!(matches!(rig.state(), State::Away { reason, .. } if reason.contains("shutting down")));
    assert!(waits(&mut read));
    assert!(!rig.later(Duration::ZERO).dial);
    assert!(rig.later(SECOND).dial);
}

#[test]
fn connections_grow_with_the_work_and_rest_with_it() {
    let mut rig = Rig::new(config());
    let mut wires = vec![rig.up()];
    let mut reads: Vec<_> = (0..2).map(|n| rig.read(n * 512, 512)).collect();
    assert!(!rig.later(Duration::ZERO).dial, "one is enough");
    for connections in 1..4 {
        reads.extend((0..3).map(|n| rig.read((1 << 20) * connections + n * 512, 512)));
        assert!(rig.later(Duration::ZERO).dial);
        wires.push(rig.up());
    }
    reads.extend((0..16).map(|n| rig.read((8 << 20) + n * 512, 512)));
    assert!(!rig.later(Duration::ZERO).dial, "no more than allowed");
    for _ in 0..2 {
        for wire in &mut wires {
            for request in wire.asks() {
                rig.answer(wire, &request);
            }
        }
    }
    reads.iter_mut().for_each(|read| drop(data(read)));
    rig.later(29 * SECOND);
    assert_eq!(rig.state(), State::Connected { connections: 4 });
    rig.later(2 * SECOND);
    assert_eq!(rig.state(), State::Connected { connections: 1 });
    let closed = wires.iter_mut().filter_map(|wire| wire.orders.try_recv().ok()).filter(|order| *order == Order::Close);
    let closed = closed.count();
    assert_eq!(closed, 3);
}

#[test]
fn the_last_connection_rests_too_and_comes_back_with_the_work() {
    let mut rig = Rig::new(config());
    let mut wire = rig.up();
    for _ in 0..2 {
        let mut read = rig.read(0, 512);
        let request = wire.ask();
        // However long that takes.
        rig.later_heard(70 * SECOND / 20, &[&wire]);
        rig.answer(&wire, &request);
        data(&mut read);
        let plan = rig.later(59 * SECOND);
        assert!(plan.next.is_some_and(|next| next <= rig.now + 2 * SECOND), "{plan:?}");
        assert_eq!(rig.state(), State::Connected { connections: 1 });
        assert!(!rig.later(2 * SECOND).dial);
        assert_eq!(wire.orders.try_recv(), Ok(Order::Close));
        assert_eq!(rig.state(), State::Resting);
        // The connection says goodbye; nothing more is to be done.
        rig.table.link_down(wire.id, Ended::Wanted, rig.now);
        let plan = rig.later(1000 * SECOND);
        assert_eq!((plan.dial, plan.next, rig.state()), (false, None, State::Resting));
        let mut read = rig.read(4096, 512);
        assert!(rig.table.planned().is_some_and(|at| at <= rig.now), "the keeper is to look");
        assert!(rig.later(Duration::ZERO).dial);
        assert_eq!(rig.state(), State::Resting, "it is not away as far as anybody knows");
        wire = rig.up();
        assert_eq!(rig.state(), State::Connected { connections: 1 });
        let request = wire.ask();
        rig.answer(&wire, &request);
        data(&mut read);
    }
    // A server that has gone meanwhile is noticed, and looked for from then on.
    rig.later(61 * SECOND);
    assert_eq!(rig.state(), State::Resting);
    let _read = rig.read(0, 512);
    assert!(rig.later(Duration::ZERO).dial);
    rig.table.dial_failed(None, "refused".into(), false, rig.now);
    assert!(matches!(rig.state(), State::Away { .. }), "{:?}", rig.state());
    rig.later(61 * SECOND);
    assert!(matches!(rig.state(), State::Away { .. }), "{:?}", rig.state());
    let plan = rig.later(20 * SECOND);
    assert!(plan.dial, "nobody waits, and it is tried all the same");
}

#[test]
fn a_server_that_does_not_allow_several_connections_gets_one() {
    let mut rig = Rig::new(config());
    let _wire = rig.up_with(Peer { multi: false, ..peer() });
    let _reads: Vec<_> = (0..20).map(|n| rig.read(n * 512, 512)).collect();
    assert!(!rig.later(Duration::ZERO).dial);
}

#[test]
fn a_second_connection_that_fails_does_not_trouble_the_first() {
    let mut rig = Rig::new(config());
    let _wire = rig.up();
    let _reads: Vec<_> = (0..20).map(|n| rig.read(n * 512, 512)).collect();
    assert!(rig.later(Duration::ZERO).dial);
    rig.table.dial_failed(None, "no room".into(), false, rig.now);
    assert_eq!(rig.state(), State::Connected { connections: 1 });
    let _more: Vec<_> = (0..20).map(|n| rig.read(n * 512, 512)).collect();
    assert!(!rig.later(Duration::ZERO).dial, "not at once");
}

#[test]
fn what_lies_beyond_the_end_is_refused_even_if_the_end_was_not_known() {
    let mut rig = Rig::new(config());
    let mut early = rig.read(SIZE, 1);
    let _wire = rig.up();
    assert!(matches!(error(&mut early), Error::OutOfRange { size: SIZE, .. }));
    let late = rig.table.read(SIZE - 100..SIZE + 1, rig.now + SECOND, rig.now);
    assert!(matches!(late, Err(Error::OutOfRange { .. })));
}

#[test]
fn requests_fit_the_server() {
    let mut rig = Rig::new(config());
    let mut early = rig.read(0, 1 << 20);
    let mut wire = rig.up_with(Peer { block: 4096, payload_max: 70_000, ..peer() });
    assert!(matches!(early.try_recv(), Ok(Err(Lost::CutAnew))));
    let parts = rig.table.read(100..200_000, rig.now + SECOND, rig.now).unwrap();
    let mut at = 100;
    for part in parts {
        for request in wire.asks() {
            assert!(
                request.length <= 70_000 && request.length.is_multiple_of(4096) && request.offset.is_multiple_of(4096)
            );
            rig.answer(&wire, &request);
        }
        let Part::Coming(mut coming) = part else { panic!("not a request") };
        let bytes = data(&mut coming);
        let end = at + bytes.len() as u64;
        assert_eq!(bytes, content(at..end));
        at = end;
    }
    assert_eq!(at, 200_000);
}

#[test]
fn without_block_status_everything_is_data() {
    let mut rig = Rig::new(config());
    let mut wire = rig.up_with(Peer { context: None, ..peer() });
    let mut coming = rig.table.status(512..8192, rig.now + SECOND, rig.now).unwrap();
    let all = Extent { len: 7680, kind: ExtentKind::Data };
    assert!(matches!(coming.try_recv(), Ok(Ok(Outcome::Extents(extents))) if extents == [all]));
    assert!(wire.asks().is_empty());
}

#[test]
fn block_status_is_asked_in_whole_blocks_and_cut() {
    let mut rig = Rig::new(config());
    let mut wire = rig.up_with(Peer { block: 4096, ..peer() });
    let mut coming = rig.table.status(512..8193, rig.now + SECOND, rig.now).unwrap();
    let request = wire.ask();
    assert_eq!((request.command, request.offset, request.length), (Command::BLOCK_STATUS, 0, 12288));
    rig.answer(&wire, &request);
    let all = Extent { len: 7681, kind: ExtentKind::Hole };
    assert!(matches!(coming.try_recv(), Ok(Ok(Outcome::Extents(extents))) if extents == [all]));
}

#[test]
fn somebody_who_waits_shortens_the_pause() {
    let mut rig = Rig::new(config());
    for _ in 0..20 {
        rig.table.dial_failed(None, "refused".into(), false, rig.now);
    }
    let plan = rig.later(Duration::ZERO);
    assert!(plan.next.unwrap() - rig.now > 7 * SECOND);
    let _read = rig.read(0, 512);
    assert!(rig.table.planned().unwrap() <= rig.now, "the keeper is to look");
    assert!(rig.later(Duration::ZERO).next.unwrap() - rig.now <= 2 * SECOND);
    rig.table.nudge(rig.now);
    assert!(rig.later(Duration::ZERO).dial);
}

#[test]
fn closing_answers_everyone() {
    let mut rig = Rig::new(config());
    let mut wire = rig.up();
    let mut reads: Vec<_> = (0..3).map(|n| rig.read(n * 512, 512)).collect();
    wire.asks();
    rig.table.close();
    for read in &mut reads {
        assert_eq!(error(read), Error::Closed);
    }
    assert_eq!(wire.orders.try_recv(), Ok(Order::Close));
    assert!(matches!(rig.table.read(0..1, rig.now + SECOND, rig.now), Err(Error::Closed)));
}

/// Everything at random, for a while; then a good server. Every request is answered once, with the right bytes or an error
/// that it may have, and no later than its deadline; limits hold; nothing is left over.
#[test]
fn random_courses_lose_nothing() {
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let config = Config {
            readahead_bytes: if rng.one_in(2) { 65536 } else { 0 },
            requests: 1 + rng.below(16) as usize,
            bytes: 1 << (16 + rng.below(6)),
            ..config()
        };
        let (requests, bytes) = (config.requests, config.bytes);
        // Whether there are silences.
        let silent = rng.one_in(2);
        let mut rig = Rig::new(config);
        let mut wires: Vec<(Wire, Vec<Request>)> = Vec::new();
        let mut waiting: Vec<(Vec<Part>, Range<u64>, Instant)> = Vec::new();
        for step in 0..400 {
            match rng.below(if step < 300 { 12 } else { 3 }) {
                0 if step < 300 => {
                    let (off, large) = (rng.below(SIZE - (2 << 20)), rng.one_in(4));
                    let range = off..off + 1 + rng.below(if large { 2 << 20 } else { 9000 });
                    let deadline = rig.now + Duration::from_millis(100 + rng.below(60_000));
                    let Ok(parts) = rig.table.read(range.clone(), deadline, rig.now) else { panic!("seed {seed}") };
                    // Some do not wait for their answer.
                    if !rng.one_in(20) {
                        waiting.push((parts, range, deadline));
                    }
                }
                0 | 1 => {
                    for (wire, asked) in &mut wires {
                        if asked.is_empty() {
                            continue;
                        }
                        let request = asked.remove(rng.below(asked.len() as u64) as usize);
                        if rig.table.asked(wire.id, request.cookie).is_some() {
                            rig.answer(wire, &request);
                        }
                    }
                }
                2 if silent => drop(rig.later(Duration::from_millis(rng.below(2000)))),
                2 => {
                    let heard: Vec<&Wire> = wires.iter().map(|(wire, _)| wire).collect();
                    rig.later_heard(Duration::from_millis(rng.below(2000)), &heard);
                }
                3 if wires.len() < 4 => wires.push((rig.up(), Vec::new())),
                4 if !wires.is_empty() => {
                    let (wire, _) = wires.remove(rng.below(wires.len() as u64) as usize);
                    rig.down(&wire);
                }
                5 => rig.table.dial_failed(None, "refused".into(), rng.one_in(5), rig.now),
                6 if !wires.is_empty() => {
                    let (wire, asked) = &mut wires[0];
                    if let Some(request) = asked.pop()
                        && rig.table.asked(wire.id, request.cookie).is_some()
                    {
                        rig.refuse(wire, &request, request.offset);
                    }
                }
                7 if silent => drop(rig.later(6 * SECOND)),
                _ => {}
            }
            wires.retain_mut(|(wire, asked)| {
                let mut open = !wire.orders.is_closed();
                while let Ok(order) = wire.orders.try_recv() {
                    match order {
                        Order::Ask(request) => asked.push(request),
                        Order::Close => open = false,
                    }
                }
                open
            });
            // A connection that was suspect and is not brings back what it owes.
            let (owed, owed_bytes) = if silent { (0, 0) } else { rig.table.in_flight() };
            assert!(owed <= requests, "seed {seed}: {owed} of {requests} requests in flight");
            assert!(owed_bytes <= bytes.max(1 << 20), "seed {seed}: {owed_bytes} of {bytes} bytes in flight");
            waiting.retain_mut(|(parts, range, deadline)| {
                if rig.now >= *deadline {
                    rig.table.tick(rig.now);
                }
                let open = still_waits(parts, range, rig.now >= *deadline, seed);
                assert!(!open || rig.now < *deadline, "seed {seed}: late");
                open
            });
        }
        // A good server: all that is left is answered.
        let mut last = rig.up();
        for _ in 0..1000 {
            for request in last.asks() {
                if rig.table.asked(last.id, request.cookie).is_some() {
                    rig.answer(&last, &request);
                }
            }
            rig.later_heard(Duration::from_millis(30), &[&last]);
        }
        for (mut parts, range, deadline) in waiting {
            assert!(
                !still_waits(&mut parts, &range, rig.now >= deadline, seed),
                "seed {seed}: {range:?} has no answer"
            );
        }
        rig.later(100 * SECOND);
        assert_eq!(rig.table.left_over(), (0, 0, 0, 0), "seed {seed}: fetches, waiting, units, deadlines");
    }
}

/// Whether a read is still without an answer. One that it has is looked at.
fn still_waits(parts: &mut [Part], range: &Range<u64>, late: bool, seed: u64) -> bool {
    for part in parts.iter_mut() {
        let Part::Coming(coming) = part else { continue };
        match coming.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return true,
            Ok(Ok(Outcome::Data(data))) => *part = Part::Here(data),
            Ok(Err(Lost::Error(Error::TimedOut { .. }))) => {
                assert!(late, "seed {seed}: given up early");
                return false;
            }
            Ok(Err(Lost::Error(Error::Server { off, .. }))) => {
                assert!(range.contains(&off), "seed {seed}: an error of somebody else");
                return false;
            }
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    let bytes: Vec<u8> =
        parts.iter().flat_map(|part| if let Part::Here(bytes) = part { &bytes[..] } else { &[] }).copied().collect();
    assert!(bytes == content(range.clone()), "seed {seed}: wrong bytes for {range:?}");
    false
}
