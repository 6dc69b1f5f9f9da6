//! The driver that is killed and started again, and how its callers call it.

use crate::common::Driver;
use crate::random::Random;
use anyhow::{Context, Result, bail};
use coppice_proto::unix;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{RwLock, watch};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Every call answers within that.
const ANSWER_SECONDS_MAX: u64 = 150;

/// What all callers share.
pub struct World {
    pub driver: tokio::sync::Mutex<Driver>,
    pub base: PathBuf,
    socket: PathBuf,
    /// How often the driver was ended; counted before the signal is sent.
    deaths: AtomicU64,
    /// The number of deaths before the driver that serves.
    serving: watch::Sender<u64>,
    /// Calls made so far; the killer strikes by it.
    pub calls: watch::Sender<u64>,
    /// Held by users of mounted volumes; a driver that starts waits for them, because it takes dead mounts away from under
    /// them.
    pub users: RwLock<()>,
    slowest: Mutex<(Duration, &'static str)>,
    /// Volumes that callers fight over: every id that any of them was ever told.
    pub shared: Mutex<Vec<String>>,
}

impl World {
    pub fn new(driver: Driver) -> Arc<World> {
        Arc::new(World {
            base: driver.base.clone(),
            socket: driver.path("csi.sock"),
            driver: tokio::sync::Mutex::new(driver),
            deaths: AtomicU64::new(0),
            serving: watch::Sender::new(0),
            calls: watch::Sender::new(0),
            users: RwLock::new(()),
            slowest: Mutex::default(),
            shared: Mutex::default(),
        })
    }

    pub fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::SeqCst)
    }

    pub fn slowest(&self) -> (Duration, &'static str) {
        self.slowest.lock().map(|slowest| *slowest).unwrap_or_default()
    }

    /// Ends the driver, well or badly, and starts it again.
    pub async fn restart(&self, kindly: bool) -> Result<()> {
        let mut driver = self.driver.lock().await;
        let death = self.deaths.fetch_add(1, Ordering::SeqCst) + 1;
        if kindly {
            driver.terminate().await?;
        } else {
            driver.kill()?;
        }
        let _nobody = self.users.write().await;
        driver.run().await?;
        self.serving.send_replace(death);
        Ok(())
    }

    /// Kills and restarts after so many calls each time, until the other end of `end` is dropped.
    pub async fn kill_now_and_then(
        &self,
        mut random: Random,
        calls_between: u64,
        mut end: tokio::sync::oneshot::Receiver<()>,
    ) -> Result<()> {
        let mut calls = self.calls.subscribe();
        loop {
            let strike = *calls.borrow() + random.between(calls_between / 3, calls_between * 2);
            tokio::select! {
                _ = &mut end => return Ok(()),
                reached = calls.wait_for(|calls| *calls >= strike) => { reached?; }
            }
            tokio::time::sleep(Duration::from_micros(random.below(60_000))).await;
            self.restart(random.chance(20)).await?;
        }
    }
}

/// How a call ended.
#[derive(Debug)]
pub enum Ended<T> {
    Ok(T),
    Refused(Status),
    /// The driver was ended meanwhile: it may have been done or not.
    Cut,
}

/// A caller's connection, made anew for each life of the driver.
#[derive(Clone)]
pub struct Line {
    world: Arc<World>,
    channel: Option<(u64, Channel)>,
}

impl Line {
    pub fn new(world: Arc<World>) -> Line {
        Line { world, channel: None }
    }

    /// The life of the driver, and a channel to it.
    pub async fn channel(&mut self) -> Result<(u64, Channel)> {
        let mut serving = self.world.serving.subscribe();
        loop {
            let life = *serving.wait_for(|serving| *serving == self.world.deaths()).await?;
            if let Some((of, channel)) = &self.channel
                && *of == life
            {
                return Ok((life, channel.clone()));
            }
            match unix::connect(&self.world.socket).await {
                Ok(channel) => self.channel = Some((life, channel)),
                Err(_) if self.world.deaths() != life => {}
                Err(e) => return Err(e).context("the driver serves but does not answer"),
            }
        }
    }

    /// Makes one call. Answers that no caller may ever see end the test.
    pub async fn call<T, F, Fut>(&mut self, what: &'static str, call: F) -> Result<Ended<T>>
    where
        F: FnOnce(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let (life, channel) = self.channel().await?;
        self.world.calls.send_modify(|calls| *calls += 1);
        let began = Instant::now();
        let answer = tokio::time::timeout(Duration::from_secs(ANSWER_SECONDS_MAX), call(channel)).await;
        let took = began.elapsed();
        if let Ok(mut slowest) = self.world.slowest.lock()
            && took > slowest.0
        {
            *slowest = (took, what);
        }
        match answer {
            Err(_) => bail!("{what} did not answer within {ANSWER_SECONDS_MAX} s"),
            Ok(Ok(answer)) => Ok(Ended::Ok(answer.into_inner())),
            Ok(Err(status)) => match status.code() {
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded
                    if self.world.deaths() != life =>
                {
                    Ok(Ended::Cut)
                }
                Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::OutOfRange
                | Code::ResourceExhausted
                | Code::FailedPrecondition
                | Code::Aborted => Ok(Ended::Refused(status)),
                code => bail!("{what} answered {code:?}: {status:?}"),
            },
        }
    }

    /// Makes a call as an orchestrator does: repeated when it was cut off, and sometimes several times at once. All copies
    /// must get the same answer, or be told to try again.
    pub async fn settle<T, F, Fut>(
        &mut self,
        random: &mut Random,
        what: &'static str,
        call: F,
    ) -> Result<Result<T, Status>>
    where
        T: PartialEq + std::fmt::Debug + Send + 'static,
        F: Fn(Channel) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        loop {
            let copies = if random.chance(25) { random.between(2, 4) } else { 1 };
            let mut running = tokio::task::JoinSet::new();
            // The line is connected before the copies are made.
            self.channel().await?;
            for _ in 0..copies {
                let (mut line, call) = (self.clone(), call.clone());
                running.spawn(async move { line.call(what, call).await });
            }
            let (mut done, mut refused) = (None, None);
            while let Some(ended) = running.join_next().await {
                match ended?? {
                    Ended::Cut => {}
                    Ended::Refused(status) if status.code() == Code::Aborted => {}
                    Ended::Refused(status) => refused = Some(status),
                    Ended::Ok(answer) => match &done {
                        Some(other) if *other != answer => {
                            bail!("{what}, made {copies} times at once, answered {other:?} and {answer:?}")
                        }
                        _ => done = Some(answer),
                    },
                }
            }
            match (done, refused) {
                (Some(answer), None) => return Ok(Ok(answer)),
                (None, Some(status)) => return Ok(Err(status)),
                (Some(answer), Some(status)) => {
                    bail!("{what}, made {copies} times at once, answered {answer:?} and {status:?}")
                }
                (None, None) => {}
            }
        }
    }
}
