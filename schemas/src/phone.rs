//! Phone numbers: E.164, checked by the numbering plans of Google's libphonenumber.

use std::fmt;

/// A valid E.164 number, kept as its digits: fifteen at most, the first never zero (ITU-T E.164 §6.1), so a `u64` holds it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Phone(u64);

/// Why a number was refused, in a sentence for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPhone(pub &'static str);

impl fmt::Display for BadPhone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadPhone {}

impl Phone {
    /// Checks a number from outside: `+`, country code, number, no spaces, and valid in its country's plan.
    ///
    /// Costs some microseconds; a caller that meets the same numbers often keeps the answers.
    pub fn parse(text: &str) -> Result<Self, BadPhone> {
        let phone = Self::from_stored(text)
            .ok_or(BadPhone("must be E.164: '+', the country code and the number, 8 to 15 digits, no spaces"))?;
        match phonenumber::parse(None, text) {
            Ok(number) if phonenumber::is_valid(&number) => Ok(phone),
            _ => Err(BadPhone("is not a number that its country's numbering plan can hold")),
        }
    }

    /// Reads back what [`Phone::parse`] once accepted: the form is checked, the numbering plan is not.
    pub fn from_stored(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('+')?;
        let formed =
            (8..=15).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
        formed.then(|| digits.parse().ok().map(Self)).flatten()
    }

    /// Stars with the last two digits: enough to follow one person through a log, too little to call.
    pub fn redacted(self) -> String {
        format!("+***{:02}", self.0 % 100)
    }
}

impl fmt::Display for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{}", self.0)
    }
}

impl fmt::Debug for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_exist_are_taken_and_others_refused() {
        for good in ["+962790000001", "+14155552671", "+442071838750"] {
            assert_eq!(Phone::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "+",
            "962790000001",
            "+0962790000001",
            "+96279 0000001",
            "+9627",
            "+1234567890123456",
            "+96279000000x",
            "+999123456789",
        ] {
            assert!(Phone::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_log_never_shows_a_number() {
        assert_eq!(format!("{:?}", Phone::parse("+962790000001").unwrap()), "+***01");
    }
}
