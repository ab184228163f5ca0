//! Numbers on the command line, as llama-bench takes them.

use std::str::FromStr;

/// A number, or a range with a step (`512-2048+512`) or a factor (`128-1024*2`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts(Vec<usize>);

impl Counts {
    pub fn all(lists: &[Self]) -> impl Iterator<Item = usize> {
        lists.iter().flat_map(|list| list.0.iter().copied())
    }
}

/// A range longer than this is a mistake.
const MOST: usize = 1000;

impl FromStr for Counts {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.parse::<usize>().map_err(|_| format!("{t:?} is no number"));
        let Some((first, rest)) = text.split_once('-') else { return Ok(Self(vec![number(text)?])) };
        let at = rest.find(['+', '*']).unwrap_or(rest.len());
        let (first, last) = (number(first)?, number(&rest[..at])?);
        let step = if at < rest.len() { number(&rest[at + 1..])? } else { 1 };
        let next = |n: usize| match rest[at..].starts_with('*') {
            true => n.checked_mul(step),
            false => n.checked_add(step),
        };
        let mut counts = vec![];
        let mut n = Some(first).filter(|n| *n <= last);
        while let Some(count) = n {
            counts.push(count);
            n = next(count).filter(|n| *n <= last);
            if n == Some(count) || counts.len() > MOST {
                return Err(format!("the range {text:?} has no end"));
            }
        }
        if counts.is_empty() { Err(format!("the range {text:?} is empty")) } else { Ok(Self(counts)) }
    }
}

/// A prompt and an answer: `512,128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub prompt: usize,
    pub answer: usize,
}

impl FromStr for Pair {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let pair = text.split_once(',').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        pair.map(|(prompt, answer)| Self { prompt, answer })
            .ok_or_else(|| "two numbers, as in 512,128".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let counts = |text: &str| text.parse().map(|Counts(list)| list);
        for (text, want) in [
            ("7", vec![7]),
            ("1-3", vec![1, 2, 3]),
            ("512-2048+512", vec![512, 1024, 1536, 2048]),
            ("128-1000*2", vec![128, 256, 512]),
            ("4-4", vec![4]),
        ] {
            assert_eq!(counts(text), Ok(want), "{text}");
        }
        for text in ["", "x", "1-", "3-1", "0-8*2", "2-8*1", "2-8*0", "1-8+0", "1-9999999999", "-1"] {
            assert!(counts(text).is_err(), "{text}");
        }
        assert_eq!("512,128".parse(), Ok(Pair { prompt: 512, answer: 128 }));
        assert!("512".parse::<Pair>().is_err() && "512,x".parse::<Pair>().is_err());
    }
}
