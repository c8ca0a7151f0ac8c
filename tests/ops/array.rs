//! f64 arrays for oracles: a shape and its elements.

#[derive(Clone, Debug)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Array {
    pub fn new(shape: &[usize], data: Vec<f64>) -> Array {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Array { shape: shape.to_vec(), data }
    }

    pub fn last(&self) -> usize {
        *self.shape.last().unwrap()
    }

    pub fn map(&self, f: impl Fn(f64) -> f64) -> Array {
        Array::new(&self.shape, self.data.iter().map(|x| f(*x)).collect())
    }

    /// `b` repeated over leading dimensions.
    pub fn zip(&self, b: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
        let n = b.data.len();
        let data = self.data.iter().enumerate().map(|(i, x)| f(*x, b.data[i % n])).collect();
        Array::new(&self.shape, data)
    }

    /// Each row of the last dimension turned into another row.
    pub fn rows(&self, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        self.data.chunks(self.last()).flat_map(f).collect()
    }

    pub fn matmul(&self, b: &Array, ta: bool, tb: bool) -> Array {
        let d = self.shape.len();
        let (a0, a1) = (self.shape[d - 2], self.shape[d - 1]);
        let (b0, b1) = (b.shape[d - 2], b.shape[d - 1]);
        let (m, k) = if ta { (a1, a0) } else { (a0, a1) };
        let n = if tb { b0 } else { b1 };
        let batch: usize = self.shape[..d - 2].iter().product();
        let mut out = Vec::new();
        for e in 0..batch {
            for i in 0..m {
                for j in 0..n {
                    out.push(
                        (0..k)
                            .map(|l| {
                                let x = if ta { l * a1 + i } else { i * a1 + l };
                                let y = if tb { j * b1 + l } else { l * b1 + j };
                                self.data[e * a0 * a1 + x] * b.data[e * b0 * b1 + y]
                            })
                            .sum(),
                    );
                }
            }
        }
        let mut shape = self.shape[..d - 2].to_vec();
        shape.extend([m, n]);
        Array::new(&shape, out)
    }
}
