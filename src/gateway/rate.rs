//! How fast one client may submit: a token bucket for each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::answer::Problem;
use super::conn::Peer;

/// Clients that are remembered; beyond, those that have been quiet longest are forgotten, which costs them nothing.
const CLIENTS_MAX: usize = 1024;

/// Submissions that may come at once after a quiet time, in seconds of the rate.
const BURST_SECONDS: f64 = 2.0;

pub struct SubmitRate {
    /// `gateway.submit_rate_per_s`; 0 = off. A reload changes it.
    per_second: Arc<AtomicU32>,
    clients: Mutex<HashMap<IpAddr, Bucket>>,
}

struct Bucket {
    tokens: f64,
    at: Duration,
}

impl SubmitRate {
    pub fn new(per_second: Arc<AtomicU32>) -> SubmitRate {
        SubmitRate { per_second, clients: Mutex::new(HashMap::new()) }
    }

    /// Takes one submission of this client. Local clients have the socket's file mode and no limit.
    pub fn take(&self, peer: Peer, now: Duration) -> Result<(), Problem> {
        let rate = self.per_second.load(Ordering::Relaxed);
        let Peer::Network(address) = peer else { return Ok(()) };
        if rate == 0 {
            return Ok(());
        }
        let burst = (f64::from(rate) * BURST_SECONDS).max(1.0);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CLIENTS_MAX && !clients.contains_key(&address) {
            forget_quietest(&mut clients);
        }
        let bucket = clients.entry(address).or_insert(Bucket { tokens: burst, at: now });
        let earned = now.saturating_sub(bucket.at).as_secs_f64() * f64::from(rate);
        bucket.tokens = (bucket.tokens + earned).min(burst);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        let wait = ((1.0 - bucket.tokens) / f64::from(rate)).ceil().max(1.0) as u64;
        let message = format!(
            "more than gateway.submit_rate_per_s = {rate} submissions a second came from {address}: retry in {wait} s"
        );
        Err(Problem { retry_after_s: Some(wait), ..Problem::new(429, "rate_limited", message) })
    }
}

fn forget_quietest(clients: &mut HashMap<IpAddr, Bucket>) {
    let quietest = clients.iter().min_by_key(|(_, bucket)| bucket.at).map(|(address, _)| *address);
    if let Some(address) = quietest {
        clients.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> Peer {
        Peer::Network(IpAddr::from([127, 0, 0, last]))
    }

    #[test]
    fn a_client_has_its_burst_and_then_its_rate_and_others_have_their_own() {
        let rate = SubmitRate::new(Arc::new(AtomicU32::new(5)));
        let now = Duration::from_secs(10);
        for nth in 0..10 {
            assert!(rate.take(client(1), now).is_ok(), "submission {nth} is within the burst");
        }
        let refused = rate.take(client(1), now).expect_err("one too many");
        assert_eq!((refused.status, refused.code, refused.retry_after_s), (429, "rate_limited", Some(1)));
        assert!(rate.take(client(2), now).is_ok());
        assert!(rate.take(Peer::Local, now).is_ok());
        assert!(rate.take(client(1), now + Duration::from_millis(200)).is_ok(), "one was earned");
        assert!(rate.take(client(1), now + Duration::from_millis(200)).is_err());
    }

    #[test]
    fn clients_are_bounded_and_zero_is_off() {
        let rate = SubmitRate::new(Arc::new(AtomicU32::new(1)));
        for nth in 0..3000_u32 {
            let address = IpAddr::from(nth.to_be_bytes());
            let _ = rate.take(Peer::Network(address), Duration::from_millis(u64::from(nth)));
        }
        assert_eq!(rate.clients.lock().expect("sound").len(), CLIENTS_MAX);
        let off = SubmitRate::new(Arc::new(AtomicU32::new(0)));
        assert!((0..1000).all(|_| off.take(client(1), Duration::ZERO).is_ok()));
    }
}
