//! Query parameters: each is used or refused, none is ignored.

use std::time::Duration;

use super::answer::Problem;
use super::head::cut;
use crate::core::ids::PermitId;

/// The longest `?wait=`, in seconds: kurultai-api(7).
const WAIT_MAX: f64 = 3600.0;

#[derive(Debug, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub fn parse(text: &str) -> Result<Query, Problem> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            if pairs.iter().any(|(known, _)| *known == name) {
                return Err(Problem::invalid(format!("parameter {:?} is given twice: give it once", cut(&name))));
            }
            pairs.push((name, value));
        }
        Ok(Query { pairs })
    }

    pub fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(known, _)| known == name)
    }

    pub fn take(&mut self, name: &str) -> Option<String> {
        let index = self.pairs.iter().position(|(known, _)| known == name)?;
        Some(self.pairs.swap_remove(index).1)
    }

    pub fn take_number(&mut self, name: &str, min: u64, max: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        number
            .map(Some)
            .ok_or_else(|| Problem::invalid(format!("{name}={:?} is no whole number from {min} to {max}", cut(&text))))
    }

    pub fn take_flag(&mut self, name: &str) -> Result<Option<bool>, Problem> {
        match self.take(name).as_deref() {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(text) => Err(Problem::invalid(format!("{name}={:?} is neither true nor false", cut(text)))),
        }
    }

    /// Seconds, with a fraction if need be.
    pub fn take_seconds(&mut self, name: &str) -> Result<Option<f64>, Problem> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let seconds = text.parse::<f64>().ok().filter(|seconds| seconds.is_finite());
        seconds.map(Some).ok_or_else(|| Problem::invalid(format!("{name}={:?} is no number of seconds", cut(&text))))
    }

    pub fn take_wait(&mut self) -> Result<Option<Duration>, Problem> {
        let Some(seconds) = self.take_seconds("wait")? else { return Ok(None) };
        if !(0.0..=WAIT_MAX).contains(&seconds) {
            return Err(Problem::invalid(format!("wait={seconds} is not from 0 to {WAIT_MAX} seconds")));
        }
        Ok(Some(Duration::from_secs_f64(seconds)))
    }

    pub fn take_permit(&mut self) -> Result<Option<PermitId>, Problem> {
        self.take("permit").map(|text| permit(&text)).transpose()
    }

    pub fn nothing_else(&self) -> Result<(), Problem> {
        match self.pairs.first() {
            None => Ok(()),
            Some((name, _)) => {
                Err(Problem::invalid(format!("parameter {:?} means nothing here: see kurultai-api(7)", cut(name))))
            }
        }
    }
}

/// A permit that is not of our making is one that is not out.
pub fn permit(text: &str) -> Result<PermitId, Problem> {
    text.parse().map_err(|error| Problem::new(404, "unknown_permit", format!("{error}")))
}

/// Percent-decoding (RFC 3986, section 2.1), `+` as a space in the way of forms.
pub fn decode(text: &str) -> Result<String, Problem> {
    let wrong = || Problem::invalid(format!("{:?} is not percent-encoded UTF-8", cut(text)));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (digits, after) = rest.split_at_checked(2).ok_or_else(wrong)?;
                rest = after;
                let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'));
                digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or_else(wrong)?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_taken_once_and_never_ignored() {
        let mut query = Query::parse("state=a%2Cb&agent=x+y&limit=7").expect("sound");
        assert_eq!(query.take("state").as_deref(), Some("a,b"));
        assert_eq!(query.take("agent").as_deref(), Some("x y"));
        assert!(query.nothing_else().is_err(), "limit is left");
        assert_eq!(query.take_number("limit", 1, 10).ok(), Some(Some(7)));
        assert!(query.nothing_else().is_ok());
    }

    #[test]
    fn bad_parameters_are_refused() {
        for bad in ["a=1&a=2", "a=%", "a=%4", "a=%zz", "a=%+1", "a=%ff"] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
        for bad in ["wait=-1", "wait=x", "wait=3601", "wait=inf", "wait=NaN", "wait="] {
            assert!(Query::parse(bad).expect("sound").take_wait().is_err(), "{bad}");
        }
        for bad in ["limit=0", "limit=1001", "limit=1.5", "limit=-1", "limit="] {
            assert!(Query::parse(bad).expect("sound").take_number("limit", 1, 1000).is_err(), "{bad}");
        }
    }
}
