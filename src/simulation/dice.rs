//! Chance that repeats: everything random comes from one seed.

/// splitmix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `n` - 1; `n` is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of several, of which there is at least one.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// From 0 to just below 1, evenly.
    pub fn share(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Whether something of this probability, 0 to 1, comes to pass.
    pub fn comes_to_pass(&mut self, probability: f64) -> bool {
        self.share() < probability
    }

    /// The standard normal distribution: mean 0, deviation 1 (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.share(), self.share());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// An index into `weights`, each as likely as its weight; 0 if all are 0.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let total: u64 = weights.iter().sum();
        let mut left = self.below(total.max(1));
        for (index, weight) in weights.iter().enumerate() {
            if left < *weight {
                return index;
            }
            left -= weight;
        }
        0
    }

    /// A generator of its own, so that what one part of a world draws does not shift what another does.
    pub fn split(&mut self) -> Dice {
        Dice(self.roll())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_for_ever() {
        let mut dice = Dice::new(0);
        // The first outputs of splitmix64 for seed 0, as its authors' splitmix64.c gives them.
        assert_eq!([dice.roll(), dice.roll()], [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4]);
    }

    #[test]
    fn distributions_have_their_means_and_bounds() {
        let mut dice = Dice::new(7);
        let (mut sum, mut squares, mut shares) = (0.0, 0.0, 0.0);
        const N: u32 = 20_000;
        for _ in 0..N {
            let normal = dice.normal();
            (sum, squares) = (sum + normal, squares + normal * normal);
            let share = dice.share();
            assert!((0.0..1.0).contains(&share));
            shares += share;
        }
        let n = f64::from(N);
        assert!((sum / n).abs() < 0.03, "mean {}", sum / n);
        assert!((squares / n - 1.0).abs() < 0.05, "variance {}", squares / n);
        assert!((shares / n - 0.5).abs() < 0.01, "mean share {}", shares / n);
    }

    #[test]
    fn weights_are_followed_and_a_weight_of_nothing_never_comes() {
        let mut dice = Dice::new(1);
        let mut seen = [0_u32; 4];
        for _ in 0..10_000 {
            seen[dice.weighted(&[1, 0, 3, 0])] += 1;
        }
        assert_eq!((seen[1], seen[3]), (0, 0));
        assert!((2_300..2_700).contains(&seen[0]), "{seen:?}");
        assert_eq!(dice.weighted(&[0, 0]), 0);
    }
}
