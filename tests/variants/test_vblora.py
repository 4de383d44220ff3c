import contract

from lora_select.variants.vblora import VBLoRA


def test_contract(tmp_path):
    contract.check_all(VBLoRA(4, num_vectors=10, vector_length=3), tmp_path)
    contract.check_rank_sentence(VBLoRA(4, num_vectors=10, vector_length=3))
    contract.check_indivisible(VBLoRA(4, num_vectors=10, vector_length=3))
