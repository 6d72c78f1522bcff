;; Leaves where the confidence reaches 0.9, or where two exits in a row name the same class and the second is sure by
;; 0.6 at least. Takes no parameters.
(module
  (memory (export "memory") 1)
  (global $next (mut i32) (i32.const 1024))
  ;; result<_, string>: a byte, and the address and length of a reason. At 0 it is `ok`, at 16 the refusal.
  (data (i32.const 16) "\01\00\00\00\20\00\00\00\1b\00\00\00")
  (data (i32.const 32) "this policy takes no option")

  ;; Memory for what the device hands over, once, for `configure`.
  (func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at
      (i32.and
        (i32.add (global.get $next) (i32.sub (local.get $align) (i32.const 1)))
        (i32.sub (i32.const 0) (local.get $align))))
    (global.set $next (i32.add (local.get $at) (local.get $size)))
    (local.get $at))

  (func (export "offramp:policy/guest@1.1.0#configure")
    (param $classes i32) (param $costs i32) (param $exits i32) (param $parameters i32) (param $count i32) (result i32)
    (select (i32.const 16) (i32.const 0) (local.get $count)))

  (func (export "offramp:policy/guest@1.1.0#decide")
    (param $exit i32) (param $exits i32) (param $class i32) (param $confidence f32) (param $margin f32)
    (param $entropy f32) (param $agreement i32) (param $change f32) (param $cost f32) (param $next_cost f32)
    (param $time_left f32) (param $queue_depth i32) (param $temperature f32) (param $power_budget f32)
    (param $battery f32) (param $threshold f32) (result i32)
    ;; 1 is `leave`, 0 `go on`. An unknown confidence is NaN, and reaches nothing.
    (i32.or
      (f32.ge (local.get $confidence) (f32.const 0.9))
      (i32.and
        (i32.ne (local.get $agreement) (i32.const 0))
        (f32.ge (local.get $confidence) (f32.const 0.6))))))
