"""Arguments of other libraries' configurations, each with what to write here instead."""

from __future__ import annotations

ALWAYS = "Leave it out: "
_NOT_NEEDED = "Leave it out: it is not needed here."

ADVICE = {
    # GPTQConfig and the quantize_config of GPTQModel and AutoGPTQ
    "tokenizer": "Write calibration=CalibrationConfig(processor=...), or leave it out: the model's own is the default.",
    "desc_act": ALWAYS + "GPTQ always takes columns in order of decreasing activation, with static groups.",
    "act_group_aware": ALWAYS + "GPTQ always takes columns in order of decreasing activation, with static groups.",
    "static_groups": ALWAYS + "groups are always static.",
    "damp_percent": "Leave it out: recipe='default' chooses the damping on held-back samples, 'gptq' takes 0.01.",
    "damping": "Leave it out: recipe='default' chooses it on held-back samples, 'gptq' takes 0.01.",
    "mse": ALWAYS + "the ranges of `recipe='default'` are searched by squared error already.",
    "dynamic": "Write overrides={pattern: bits}, and modules_to_not_convert=[...] for what '-:' leaves out.",
    "device": "Write calibration=CalibrationConfig(device=...) for the calibration; device_map places the model.",
    "true_sequential": ALWAYS + "each group of linears always reads the quantized ones before it.",
    "batch_size": ALWAYS + "samples always run one at a time.",
    "pad_token_id": _NOT_NEEDED,
    "model_seqlen": "Write calibration=CalibrationConfig(max_length=...), or leave it out: samples fit the model.",
    "max_input_length": ALWAYS + "kernels take any length.",
    "block_name_to_quantize": ALWAYS + "blocks are found by structure.",
    "module_name_preceding_first_block": ALWAYS + "blocks are found by structure.",
    "modules_in_block_to_quantize": "Write modules_to_not_convert=[...] for the others, or overrides={pattern: bits}.",
    "cache_block_outputs": ALWAYS + "they are always kept.",
    "use_exllama": ALWAYS + "the kernel is chosen by device.",
    "exllama_config": ALWAYS + "the kernel is chosen by device.",
    "use_cuda_fp16": ALWAYS + "the kernel is chosen by device.",
    "checkpoint_format": ALWAYS + "there is one format.",
    "format": ALWAYS + "there is one format.",
    "meta": _NOT_NEEDED,
    # AwqConfig and the quant_config of AutoAWQ
    "zero_point": "Write sym=False for zero_point=True, and sym=True for zero_point=False.",
    "w_bit": "Write bits=...",
    "q_group_size": "Write group_size=...",
    "version": ALWAYS + "there is one format.",
    "backend": ALWAYS + "the kernel is chosen by device.",
    "do_fuse": _NOT_NEEDED,
    "fuse_max_seq_len": _NOT_NEEDED,
    "modules_to_fuse": _NOT_NEEDED,
    # BitsAndBytesConfig
    "load_in_4bit": "Write bits=4.",
    "load_in_8bit": "Write bits=8, with activation_bits=8 to round the inputs, too.",
    "bnb_4bit_quant_type": ALWAYS + "codes are integers with scales; there is no NF4 or FP4.",
    "bnb_4bit_compute_dtype": ALWAYS + "products have the dtype of the model: from_pretrained(dtype=...).",
    "bnb_4bit_use_double_quant": ALWAYS + "scales keep 16 bits; a larger `group_size` stores fewer.",
    "bnb_4bit_quant_storage": ALWAYS + "codes are stored in int32 words.",
    "llm_int8_threshold": ALWAYS + "a rotation spreads outliers: recipe={'rotation': 'all'}.",
    "llm_int8_skip_modules": "Write modules_to_not_convert=[...].",
    "llm_int8_enable_fp32_cpu_offload": ALWAYS + "packed layers run on the CPU as well, by `device_map`.",
    "llm_int8_has_fp16_weight": ALWAYS + "train an adapter beside the packed weight.",
    # CompressedTensorsConfig and llm-compressor
    "config_groups": "Write bits=..., group_size=..., sym=..., and overrides={pattern: bits} for other groups.",
    "ignore": "Write modules_to_not_convert=[...], without 're:'. Head and tower are packed only on request.",
    "targets": "Write overrides={pattern: bits} for some weights, or modules_to_not_convert=[...] for the others.",
    "scheme": "Write bits=..., group_size=..., sym=... and activation_bits=...",
    "dampening_frac": "Leave it out: recipe='default' chooses the damping on held-back samples, 'gptq' takes 0.01.",
    "mappings": ALWAYS + "which layers share an input, and what a scale folds into, is found in the model.",
    "kv_cache_scheme": ALWAYS + "the cache is not quantized.",
    "quantization_status": _NOT_NEEDED,
    "global_compression_ratio": _NOT_NEEDED,
    "sparsity_config": ALWAYS + "weights are not made sparse.",
    "run_compressed": ALWAYS + "packed weights always stay packed.",
    "use_optimized_inference": ALWAYS + "the kernel is chosen by device.",
    "dequantize": "Call model.dequantize() after loading.",
    "num_calibration_samples": "Write num_samples=...",
    "max_seq_length": "Write calibration=CalibrationConfig(max_length=...), or leave it out: samples fit the model.",
    # HqqConfig, QuantoConfig, AutoRoundConfig
    "nbits": "Write bits=...",
    "axis": ALWAYS + "groups always run along the input channels.",
    "view_as_float": _NOT_NEEDED,
    "dynamic_config": "Write overrides={pattern: bits}.",
    "skip_modules": "Write modules_to_not_convert=[...].",
    "weights": "Write bits=...",
    "activations": "Write activation_bits=8, or leave it out.",
    "nsamples": "Write num_samples=...",
    "iters": "Write recipe={'name': 'best', 'steps': ...}.",
}
"""Argument → what to write in `QAIGConfig` instead."""

TEXT_SETS = ("wikitext2", "c4", "c4-new", "ptb", "ptb-new")
"""Names of GPTQConfig's data sets of text."""
