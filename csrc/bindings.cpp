// vllm_helium._core: the prefix index for Python. Token ids come in as buffers, never as objects
// one by one, but for TokenBuffer.sync, which reads the new end of a request's list.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "helium/check.h"
#include "helium/prefix_index.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace helium {
namespace {

constexpr const char* kPlaceNames[kNumPlaces] = {"held",   "unindexed", "duplicate", "tail",    "dead",
                                                 "recent", "next_use",  "leased",    "interior"};
constexpr const char* kReasonNames[] = {"none",           "never_seen",  "evicted",  "other_namespace",
                                        "template_drift", "below_block", "capacity"};

// Value of a Python int; the common case of one digit without a call.
inline long long_value(PyObject* object) {
#if PY_VERSION_HEX >= 0x030C0000
  if (PyLong_CheckExact(object)) {
    const auto* number = reinterpret_cast<PyLongObject*>(object);
    if (PyUnstable_Long_IsCompact(number)) return PyUnstable_Long_CompactValue(number);
  }
#else
  if (PyLong_CheckExact(object) && Py_SIZE(object) == 1) {
    return long(reinterpret_cast<PyLongObject*>(object)->ob_digit[0]);
  }
#endif
  const long value = PyLong_AsLong(object);
  if (value == -1 && PyErr_Occurred()) throw nb::python_error();
  return value;
}

// The objects of `all` at some indices, in their order.
nb::list select(const nb::list& all, const std::vector<BlockId>& blocks) {
  const auto size = PyList_GET_SIZE(all.ptr());
  nb::list selected = nb::steal<nb::list>(PyList_New(Py_ssize_t(blocks.size())));
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    HELIUM_CHECK(blocks[i] < size, "block ", blocks[i], " is not among the ", size, " given");
    PyObject* object = PyList_GET_ITEM(all.ptr(), blocks[i]);
    Py_INCREF(object);
    PyList_SET_ITEM(selected.ptr(), Py_ssize_t(i), object);
  }
  return selected;
}

// Token ids of one request, int32, kept beside its Python list.
class TokenBuffer {
 public:
  // Appends what `list` has beyond this buffer; cuts the buffer where the list is shorter.
  void sync(nb::list list) {
    const auto size = std::size_t(PyList_GET_SIZE(list.ptr()));
    if (size < tokens_.size()) tokens_.resize(size);
    tokens_.reserve(size);
    for (std::size_t i = tokens_.size(); i < size; ++i) {
      const long value = long_value(PyList_GET_ITEM(list.ptr(), Py_ssize_t(i)));
      HELIUM_CHECK(value >= INT32_MIN && value <= INT32_MAX, "token ", i, " is ", value,
                   ", which is not an int32");
      tokens_.push_back(Token(value));
    }
  }
  void clear() { tokens_.clear(); }
  TokenSpan span() const { return {tokens_.data(), std::int32_t(tokens_.size())}; }

 private:
  std::vector<Token> tokens_;
};

// Borrows the tokens of a TokenBuffer, an int32 buffer (NumPy, array('i')) or little-endian bytes.
class TokenArgument {
 public:
  explicit TokenArgument(nb::handle source) {
    if (const TokenBuffer* buffer = nullptr; nb::try_cast(source, buffer) && buffer != nullptr) {
      span_ = buffer->span();
      return;
    }
    if (PyObject_GetBuffer(source.ptr(), &view_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
      PyErr_Clear();
      raise_check_error("tokens: expected a TokenBuffer, an int32 buffer or bytes, got ",
                        nb::type_name(source.type()).c_str());
    }
    owned_ = true;
    const std::string format = view_.format == nullptr ? "B" : view_.format;
    const bool is_int32 = view_.itemsize == 4 && (format == "i" || format == "l");
    const bool is_bytes = view_.itemsize == 1 && view_.len % 4 == 0;
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(view_.buf) % alignof(Token) == 0;
    if (!(is_int32 || is_bytes) || !is_aligned || view_.len / 4 > INT32_MAX) {
      PyBuffer_Release(&view_);
      raise_check_error("tokens: expected aligned int32 items, got format '", format,
                        "'; convert with numpy.asarray(tokens, dtype=numpy.int32)");
    }
    span_ = {static_cast<const Token*>(view_.buf), std::int32_t(view_.len / 4)};
  }
  ~TokenArgument() {
    if (owned_) PyBuffer_Release(&view_);
  }
  TokenArgument(const TokenArgument&) = delete;
  TokenArgument& operator=(const TokenArgument&) = delete;
  TokenSpan span() const { return span_; }

 private:
  Py_buffer view_{};
  bool owned_ = false;
  TokenSpan span_;
};

std::string_view view(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

using PyLabels = std::vector<std::pair<std::int32_t, nb::bytes>>;
using PyTags = std::vector<std::pair<std::int32_t, TagId>>;

std::vector<BlockLabel> to_labels(const PyLabels& labels) {
  std::vector<BlockLabel> result;
  for (const auto& [index, text] : labels) result.emplace_back(index, view(text));
  return result;
}

std::vector<TagSegment> to_segments(const PyTags& tags) {
  std::vector<TagSegment> result;
  for (const auto& [end, tag] : tags) result.push_back({end, tag});
  return result;
}

nb::dict stats(const PrefixIndex& index) {
  nb::dict result, blocks, evicted;
  const Stats& stats = index.stats();
  for (int place = 0; place < kNumPlaces; ++place) {
    blocks[kPlaceNames[place]] = index.count(Place(place));
    evicted[kPlaceNames[place]] = stats.num_evicted[place];
  }
  if (index.options().num_slots > 0) {
    nb::dict host, slots, demoted, slots_evicted;
    for (int place = 0; place < kNumPlaces; ++place) {
      slots[kPlaceNames[place]] = index.count_slots(Place(place));
      demoted[kPlaceNames[place]] = stats.num_demoted[place];
      slots_evicted[kPlaceNames[place]] = stats.num_slots_evicted[place];
    }
    host["slots"] = slots;
    host["demoted"] = demoted;
    host["evicted"] = slots_evicted;
    host["num_stored"] = stats.num_stored;
    host["num_loaded"] = stats.num_loaded;
    host["num_prefetched"] = stats.num_prefetched;
    host["num_prefetches_used"] = stats.num_prefetches_used;
    host["num_prefetches_wasted"] = stats.num_prefetches_wasted;
    result["host"] = host;
  }
  result["blocks"] = blocks;
  result["evicted"] = evicted;
  result["num_nodes"] = index.num_nodes();
  result["num_indexed"] = index.num_indexed();
  result["num_leased_nodes"] = index.num_leased_nodes();
  result["num_protected_nodes"] = index.num_protected_nodes();
  result["num_tags"] = index.num_tags();
  result["num_leases_dropped"] = index.stats().num_leases_dropped;
  result["num_bytes"] = index.num_bytes();
  return result;
}

// Moves as (blocks, slots).
nb::tuple to_tuple(const std::vector<Move>& moves) {
  std::vector<BlockId> blocks;
  std::vector<SlotId> slots;
  for (const Move& move : moves) {
    blocks.push_back(move.block);
    slots.push_back(move.slot);
  }
  return nb::make_tuple(blocks, slots);
}

void check_slots(const PrefixIndex& index, const std::vector<SlotId>& slots) {
  for (const SlotId slot : slots) {
    HELIUM_CHECK(slot >= 0 && slot < index.options().num_slots, "slot ", slot,
                 " is out of range [0, ", index.options().num_slots, ")");
  }
}

void check_block(const PrefixIndex& index, BlockId block) {
  HELIUM_CHECK(block >= 0 && block < index.options().num_blocks, "block ", block,
               " is out of range [0, ", index.options().num_blocks, ")");
}

void check_blocks(const PrefixIndex& index, const std::vector<BlockId>& blocks) {
  for (const BlockId block : blocks) check_block(index, block);
}

}  // namespace
}  // namespace helium

NB_MODULE(_core, m) {
  using namespace helium;
  m.doc() = "The templated radix tree over KV blocks, in C++; see vllm_helium.prefix_cache.";

  static PyObject* const cache_error =
      nb::module_::import_("helium.errors").attr("CacheError").inc_ref().ptr();
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const CheckError& error) {
      PyErr_SetString(cache_error, error.what());
    }
  });

  m.attr("PLACES") = nb::tuple(nb::cast(std::vector<std::string>(
      std::begin(kPlaceNames), std::end(kPlaceNames))));
  m.attr("MISS_REASONS") = nb::tuple(nb::cast(std::vector<std::string>(
      std::begin(kReasonNames), std::end(kReasonNames))));

  nb::class_<TokenBuffer>(m, "TokenBuffer")
      .def(nb::init<>())
      .def("sync", &TokenBuffer::sync, "list"_a,
           "Appends the tokens the list has beyond this buffer, or cuts to the list's length.")
      .def("clear", &TokenBuffer::clear)
      .def("__len__", [](const TokenBuffer& self) { return self.span().size; });

  nb::class_<Match>(m, "Match")
      .def_ro("blocks", &Match::blocks)
      .def(
          "select", [](const Match& self, nb::list all) { return select(all, self.blocks); },
          "all"_a, "The matched blocks' objects out of a list of all blocks' objects.")
      .def_ro("num_tokens", &Match::num_tokens)
      .def_ro("slots", &Match::slots)
      .def_ro("num_host_tokens", &Match::num_host_tokens)
      .def_ro("num_pending_tokens", &Match::num_pending_tokens)
      .def_prop_ro("reason", [](const Match& self) { return kReasonNames[int(self.reason)]; })
      .def_ro("miss_token", &Match::miss_token)
      .def_prop_ro("evicted_as",
                   [](const Match& self) -> nb::object {
                     if (self.evicted_as == Place::kHeld) return nb::none();
                     return nb::str(kPlaceNames[int(self.evicted_as)]);
                   })
      .def_ro("evicted_ago_s", &Match::evicted_ago_s);

  nb::class_<PrefixIndex>(m, "PrefixIndex")
      .def(
          "__init__",
          [](PrefixIndex* self, std::int32_t num_blocks, std::int32_t block_size,
             std::int32_t min_partial_tokens, std::int32_t max_leased_blocks,
             std::int32_t max_protected_blocks, std::int32_t num_slots) {
            HELIUM_CHECK(num_slots >= 0, "num_slots must not be negative, got ", num_slots);
            new (self) PrefixIndex({num_blocks, block_size, min_partial_tokens, max_leased_blocks,
                                    max_protected_blocks, num_slots});
          },
          "num_blocks"_a, "block_size"_a, "min_partial_tokens"_a = 8, "max_leased_blocks"_a = 0,
          "max_protected_blocks"_a = 0, "num_slots"_a = 0)
      .def(
          "match",
          [](const PrefixIndex& self, nb::bytes name, nb::handle tokens, std::int32_t max_tokens,
             const PyLabels& labels, std::int32_t plan, std::int32_t num_static_tokens) {
            const TokenArgument argument(tokens);
            return self.match(view(name), argument.span(), max_tokens, to_labels(labels), plan,
                              num_static_tokens);
          },
          "namespace"_a, "tokens"_a, "max_tokens"_a, "labels"_a = PyLabels(), "plan"_a = kNone,
          "num_static_tokens"_a = 0)
      .def(
          "insert",
          [](PrefixIndex& self, BlockId parent, nb::bytes name, nb::handle tokens,
             std::int32_t num_tokens, std::int32_t first_block, const std::vector<BlockId>& blocks,
             const PyLabels& labels, const PyTags& tags) {
            check_blocks(self, blocks);
            if (parent != kNone) check_block(self, parent);
            const TokenArgument argument(tokens);
            HELIUM_CHECK(first_block >= 0 && num_tokens <= argument.span().size, "insert: got ",
                         argument.span().size, " tokens, expected at least ", num_tokens);
            return self.insert(parent, view(name), argument.span().clipped(0, num_tokens),
                               first_block, blocks, to_labels(labels), to_segments(tags));
          },
          "parent"_a, "namespace"_a, "tokens"_a, "num_tokens"_a, "first_block"_a, "blocks"_a,
          "labels"_a = PyLabels(), "tags"_a = PyTags())
      .def(
          "covers",
          [](const PrefixIndex& self, BlockId parent, nb::bytes name, nb::handle tokens,
             std::int32_t first, std::int32_t count) {
            if (parent != kNone) check_block(self, parent);
            const TokenArgument argument(tokens);
            HELIUM_CHECK(first >= 0 && count > 0 && first <= argument.span().size - count,
                         "covers: tokens ", first, " to ", first + count, " are out of range");
            return self.covers(parent, view(name), argument.span().sub(first, count));
          },
          "parent"_a, "namespace"_a, "tokens"_a, "first"_a, "count"_a)
      .def(
          "claim",
          [](PrefixIndex& self, const std::vector<BlockId>& blocks, const PyTags& tags) {
            check_blocks(self, blocks);
            self.claim(blocks, to_segments(tags));
          },
          "blocks"_a, "tags"_a = PyTags())
      .def(
          "forget",
          [](PrefixIndex& self, BlockId block) {
            check_block(self, block);
            return self.forget(block);
          },
          "block"_a)
      .def(
          "forget_partial",
          [](PrefixIndex& self, BlockId block) {
            check_block(self, block);
            return self.forget_partial(block);
          },
          "block"_a)
      .def(
          "is_indexed",
          [](const PrefixIndex& self, BlockId block) {
            check_block(self, block);
            return self.is_indexed(block);
          },
          "block"_a)
      .def(
          "release",
          [](PrefixIndex& self, const std::vector<BlockId>& blocks) {
            check_blocks(self, blocks);
            self.release(blocks);
          },
          "blocks"_a)
      .def(
          "acquire",
          [](PrefixIndex& self, const std::vector<BlockId>& blocks) {
            check_blocks(self, blocks);
            self.acquire(blocks);
          },
          "blocks"_a)
      .def("evict", &PrefixIndex::evict, "count"_a)
      .def(
          "evict_from",
          [](PrefixIndex& self, nb::list all, std::int32_t count) {
            HELIUM_CHECK(PyList_GET_SIZE(all.ptr()) == self.options().num_blocks,
                         "evict_from takes the list of all blocks' objects");
            return select(all, self.evict(count));
          },
          "all"_a, "count"_a, "Same as evict, as objects out of a list of all blocks' objects.")
      .def_prop_ro("num_free", &PrefixIndex::num_free)
      .def("free_blocks", &PrefixIndex::free_blocks)
      .def(
          "place",
          [](const PrefixIndex& self, BlockId block) {
            check_block(self, block);
            return kPlaceNames[int(self.place(block))];
          },
          "block"_a)
      .def(
          "tag_of",
          [](const PrefixIndex& self, BlockId block) {
            check_block(self, block);
            return self.tag_of(block);
          },
          "block"_a)
      .def(
          "uses",
          [](const PrefixIndex& self, TagId tag) {
            const Tag& entry = self.tag_at(tag);
            return nb::make_tuple(entry.num_uses, entry.next_use);
          },
          "tag"_a)
      .def("tag", &PrefixIndex::tag, "plan"_a, "template_node"_a, "row"_a = kNone)
      .def("set_uses", &PrefixIndex::set_uses, "tag"_a, "num_uses"_a, "next_use"_a)
      .def("close_plan", &PrefixIndex::close_plan, "plan"_a)
      .def("lease", &PrefixIndex::lease, "tag"_a, "lease_s"_a)
      .def(
          "lease_blocks",
          [](PrefixIndex& self, const std::vector<BlockId>& blocks, double lease_s) {
            check_blocks(self, blocks);
            return self.lease_blocks(blocks, lease_s);
          },
          "blocks"_a, "lease_s"_a)
      .def("end_lease", &PrefixIndex::end_lease, "tag"_a)
      .def(
          "lock_slots",
          [](PrefixIndex& self, const std::vector<SlotId>& slots) {
            check_slots(self, slots);
            self.lock_slots(slots);
          },
          "slots"_a)
      .def(
          "load",
          [](PrefixIndex& self, const std::vector<BlockId>& blocks,
             const std::vector<SlotId>& slots) {
            check_blocks(self, blocks);
            check_slots(self, slots);
            self.load(blocks, slots);
          },
          "blocks"_a, "slots"_a)
      .def(
          "prefetch",
          [](PrefixIndex& self, nb::bytes name, nb::handle tokens, std::int32_t max_blocks,
             const PyLabels& labels) {
            const TokenArgument argument(tokens);
            return self.prefetch(view(name), argument.span(), max_blocks, to_labels(labels));
          },
          "namespace"_a, "tokens"_a, "max_blocks"_a, "labels"_a = PyLabels())
      .def(
          "take_moves",
          [](PrefixIndex& self) {
            const Moves moves = self.take_moves();
            return nb::make_tuple(to_tuple(moves.stores), to_tuple(moves.loads),
                                  to_tuple(moves.prefetches));
          },
          "Stores, loads and prefetches of the step, each as (blocks, slots).")
      .def("advance", &PrefixIndex::advance, "now_s"_a)
      .def("tell_time", &PrefixIndex::tell_time, "now_s"_a)
      .def("reset", &PrefixIndex::reset)
      .def("stats", &stats)
      .def("check_integrity", &PrefixIndex::check_integrity);
}
