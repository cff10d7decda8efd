"""The tests of skorch that cannot hold for `UNetSegmenter`, each with its reason."""

# Whole classes, by file and name.
LEFT_OUT = {
    "it is about a net for one number per sample; UNetSegmenter stands for NeuralNetClassifier": [
        "test_classifier.py::TestNeuralNetBinaryClassifier",
    ],
    "it makes tables of 2 to 20 columns inside each test, for a Linear layer": [
        "callbacks/test_training.py::TestInputShapeSetter",
    ],
    "no net is in it": ["callbacks/test_all.py::TestAllCallbacks"],
    "it needs the package of a logging service, which is not installed with skunet": [
        "callbacks/test_logging.py::TestMLflowLogger",
        "callbacks/test_logging.py::TestNeptune",
        "callbacks/test_logging.py::TestSacred",
        "callbacks/test_logging.py::TestTensorBoard",
        "callbacks/test_logging.py::TestWandb",
    ],
}

# Single tests, with or without their parameters.
RECORDED = {
    "an unknown keyword is a TypeError of the constructor, as of any function; skorch waits for initialize": [
        "TestNet::test_net_init_one_unknown_argument",
        "TestNet::test_net_init_two_unknown_arguments",
        *(f"TestNet::test_net_init_missing_dunder_in_prefix_argument[{case}]" for case in (
            "iterator_train_shuffle-iterator_train__shuffle", "optimizer_momentum-optimizer__momentum",
            "modulenum_units-module__num_units", "criterionreduce-criterion__reduce",
        )),
        "TestNet::test_net_init_missing_dunder_in_2_prefix_arguments",
        "TestNet::test_net_init_missing_dunder_and_unknown",
        "TestTorchCompile::test_compile_missing_dunder_in_prefix_arguments",
    ],
    "it predicts after initialize alone; a segmenter never predicts from random weights": [
        "TestNet::test_save_load_state_dict_file",
        "TestNet::test_save_load_state_dict_str",
        "TestNet::test_predict_with_dataset",
        "TestNet::test_predict_with_dataset_one_item_error",
        "TestNet::test_predict_with_dataset_three_items_error",
        "TestNet::test_multioutput_forward_iter",
        "TestNet::test_multioutput_forward",
        "TestNet::test_multioutput_predict",
        "TestNet::test_multiouput_predict_proba",
        "TestNet::test_no_grad_during_evaluation_unless_training",
        "TestNet::test_custom_non_default_module_with_check_is_fitted",
        "TestNet::test_predict_nonlinearity_none",
        "TestNet::test_predict_nonlinearity_type_error",
        "TestTrainEndCheckpoint::test_train_end_with_load_init",
    ],
    "it names the score valid_acc; a segmenter records valid_iou": [
        "TestNet::test_history_default_keys",
        "TestNet::test_callback_keeps_order",
        "TestNet::test_fit_with_dataset_without_explicit_y",
        "TestNet::test_fit_lbfgs_optimizer",
        "TestEarlyStopping::test_weights_restore",
        "TestScoringCacheGlobalControl::test_net_overrides_caching",
    ],
    "it compares the columns of the log, one of which is valid_iou": [
        "TestPrintLog::test_header",
        "TestPrintLog::test_lines",
        "TestPrintLog::test_first_row",
        "TestPrintLog::test_with_additional_key",
        "TestPrintLog::test_with_event_key",
    ],
    "it compares the repr with skorch's; a segmenter has scikit-learn's": [
        "TestNet::test_repr_uninitialized_works",
        "TestNet::test_repr_initialized_works",
        "TestNet::test_repr_fitted_works",
    ],
    "it makes y of one label per sample inside the test": [
        "TestClassifier::test_non_binary_classes_set_by_default",
        "TestClassifier::test_classes_data_torch_tensor",
        "TestClassifier::test_classes_with_gaps",
        "TestClassifier::test_classes_are_set_with_tensordataset_explicit_y",
        "TestClassifier::test_classes_are_set_with_tensordataset_implicit_y",
    ],
    "it makes X of columns, or a network or criterion for them, inside the test": [
        "TestNet::test_with_initialized_sequential",
        "TestNet::test_net_variable_prediction_lengths",
        "TestNet::test_net_variable_label_lengths",
        "TestNet::test_criterion_params_passed_to_optimizer_if_any",
        "TestNet::test_save_load_state_dict_file_with_history_optimizer_criterion",
        "TestNet::test_customize_net_with_custom_dataset_that_returns_3_values",
        *(f"TestNet::test_passes_y_to_train_split_when_not_none[{case}]" for case in (
            "False-None-raises0", "True-None-raises1", "False-default-raises2", "True-default-raises3",
            "False-<lambda>-raises4", "True-<lambda>-raises5",
        )),
        "TestNetSparseInput::test_fit_sparse_csr_learns",
        "TestTorchCompile::test_binary_classifier_with_compile",
        "TestMetadataRouting::test_undeclared_param_rejected_by_routing",
        "TestEpochScoring::test_net_input_is_scoring_input",
    ],
    "X is a dict of several inputs": [
        "TestNet::test_data_dict_and_fit_params",
        "TestNet::test_data_dict_and_fit_params_conflicting_names_raises",
        "TestMetadataRouting::test_pipeline_with_dict_x_and_groups_routing",
    ],
    "it compares a shape, a sum or a count of calls with that of one vector of scores per sample": [
        "TestNet::test_forward",
        "TestNet::test_predict_nonlinearity_called_with_predict",
        "TestNet::test_predict_nonlinearity_called_with_predict_proba",
        "TestClassifier::test_takes_log_with_nllloss",
        "TestClassifier::test_takes_no_log_without_nllloss",
        "TestClassifier::test_with_calibrated_classifier_cv",
    ],
    "it compares errors with those of a regression on skorch's four numbers": [
        "TestEpochScoring::test_correct_valid_score",
        "TestEpochScoring::test_correct_train_score",
        "TestEpochScoring::test_with_accuracy_score",
        "TestEpochScoring::test_with_make_scorer_accuracy_score",
        "TestEpochScoring::test_with_callable_accuracy_score",
        "TestBatchScoring::test_correct_train_loss_values",
        "TestBatchScoring::test_correct_valid_loss_values",
        "TestBatchScoring::test_correct_mse_values_for_batches",
        "TestBatchScoring::test_with_accuracy_score",
        "TestBatchScoring::test_with_make_scorer_accuracy_score",
        "TestBatchScoring::test_with_callable_accuracy_score",
    ],
    "it needs files of skorch's checkout, made on a GPU": [
        "TestNet::test_pickle_load",
        "TestNet::test_load_cuda_params_to_cpu",
    ],
    "y beside a Dataset is refused, as the masks are in the Dataset": [
        "TestNet::test_fit_with_dataset",
        "TestNet::test_fit_with_dataset_X_y_inaccessible_does_not_raise",
    ],
    "it compares a message; the segmenter's names image and mask": [
        "TestNet::test_fit_with_dataset_one_item_error",
        "TestNet::test_fit_with_dataset_three_items_error",
    ],
    "a fit begins anew without a word, as in scikit-learn": ["TestNet::test_message_fit_with_initialized_net"],
    "the log is written above the progress bar, not by print": [
        "TestNet::test_set_params_on_callback_then_initialize_remembers_param",
    ],
    "a DataLoader gets whole batches of patches, by a batch_sampler, in place of the user's data set": [
        "TestNet::test_batch_size_neg_1_uses_whole_dataset",
        "TestNet::test_predefined_split",
    ],
    "infer is overridden for a batch that is one tensor; a batch of patches is a dict": [
        "TestNet::test_custom_optimizer_performs_updates",
    ],
    "predictions are made image by image, without get_iterator": [
        "TestEpochScoring::test_with_caching_get_iterator_not_called[False-5]",
    ],
    "predict_proba gives probabilities also where a subclass has several criteria": [
        "TestNet::test_predict_nonlinearity_is_identity_with_multiple_criteria",
    ],
    "train_split makes a data set of the same class from X without y; Subset is the way to part images": [
        "TestEpochScoring::test_without_target_data_works",
        "TestBatchScoring::test_without_target_data_works",
    ],
    "it sets all masks to one class, which is refused": [
        "TestPassthrougScoring::test_correct_train_pass_through_scores",
        "TestPassthrougScoring::test_correct_valid_pass_through_scores",
    ],
    "classes that are not the labels of y, or none, are refused": [
        "TestClassifier::test_pass_classes_explicitly_overrides",
        "TestClassifier::test_pass_empty_classes_raises",
    ],
    "the masks of every Dataset are read, so that classes_ is always known": [
        "TestClassifier::test_error_when_classes_could_not_be_inferred",
    ],
    "compile=True compiles networks for one size of patches, and no loss, as that takes any; see test_compile.py": [
        "TestTorchCompile::test_with_compile_default",
        "TestTorchCompile::test_with_compile_extra_params",
        "TestTorchCompile::test_custom_modules_are_compiled",
        "TestTorchCompile::test_compile_called_after_set_params",
        "TestTorchCompile::test_compile_called_after_set_params_on_compile_param",
        "TestTorchCompile::test_fit_and_predict_with_compile",
    ],
    "skorch itself expects it to fail": ["TestNet::test_net_initialized_with_initalized_dataset"],
}  # fmt: skip

# Some ten seconds: twenty evaluations per step.
SLOW = {"test_fit_lbfgs_optimizer"}


def reason_of(test: str) -> str | None:
    """Return why a test cannot hold; None where it can.

    Examples
    --------
    >>> reason_of("TestNet::test_pickle_load[False]")
    "it needs files of skorch's checkout, made on a GPU"
    """
    for reason, tests in RECORDED.items():
        if test in tests or test.split("[")[0] in tests:
            return reason
    return None
